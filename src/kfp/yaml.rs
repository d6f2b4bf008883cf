//! Reads YAML into JSON values, as far as pipelines need it. Nesting and size are bounded, because the file
//! may come from anywhere.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Tag};
use serde_json::{Map, Value};

/// Deepest nesting; a pipeline never has more.
const DEEPEST: usize = 64;
/// Most values, with aliases expanded: an alias repeats its target, so a few bytes could fill all memory.
const MOST_VALUES: usize = 1 << 20;

/// The first document of `text`. JSON is YAML, so both forms of a compiled pipeline are read.
pub(super) fn first_document(text: &str) -> Result<Value, String> {
    let mut reader = YamlReader { parser: Parser::new_from_str(text), anchors: HashMap::new(), count: 0 };
    loop {
        match reader.next()? {
            Event::StreamStart | Event::DocumentStart(_) | Event::Nothing => {}
            Event::StreamEnd | Event::DocumentEnd => return Ok(Value::Null),
            first => return reader.value(first, 0),
        }
    }
}

struct YamlReader<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    anchors: HashMap<usize, Value>,
    count: usize,
}

impl<'a> YamlReader<'a> {
    fn next(&mut self) -> Result<Event<'a>, String> {
        match self.parser.next_event() {
            Some(Ok((event, _))) => Ok(event),
            Some(Err(error)) => Err(format!("is not YAML (line {})", error.marker().line())),
            None => Err("ends early".into()),
        }
    }

    fn value(&mut self, event: Event<'a>, depth: usize) -> Result<Value, String> {
        self.count += 1;
        if depth > DEEPEST || self.count > MOST_VALUES {
            return Err("is nested or repeated too much".into());
        }
        let (anchor, value) = match event {
            Event::Scalar(text, style, anchor, tag) => (anchor, scalar(&text, style, tag.as_deref())),
            Event::SequenceStart(anchor, _) => {
                let mut all = vec![];
                loop {
                    match self.next()? {
                        Event::SequenceEnd => break,
                        next => all.push(self.value(next, depth + 1)?),
                    }
                }
                (anchor, all.into())
            }
            Event::MappingStart(anchor, _) => {
                let mut all = Map::new();
                loop {
                    let key = match self.next()? {
                        Event::MappingEnd => break,
                        next => self.value(next, depth + 1)?,
                    };
                    let next = self.next()?;
                    let value = self.value(next, depth + 1)?;
                    // Keys of pipelines are strings; any other key is written as its JSON text.
                    all.insert(key.as_str().map_or_else(|| key.to_string(), String::from), value);
                }
                (anchor, all.into())
            }
            Event::Alias(anchor) => {
                let known = self.anchors.get(&anchor).cloned().ok_or("has an alias of nothing")?;
                self.count += size(&known);
                return Ok(known);
            }
            _ => return Err("ends early".into()),
        };
        if anchor != 0 {
            self.anchors.insert(anchor, value.clone());
        }
        Ok(value)
    }
}

fn size(value: &Value) -> usize {
    match value {
        Value::Array(all) => 1 + all.iter().map(size).sum::<usize>(),
        Value::Object(all) => 1 + all.values().map(size).sum::<usize>(),
        _ => 1,
    }
}

/// Plain scalars have types in YAML; quoted ones are text.
fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Value {
    if !matches!(style, ScalarStyle::Plain) || tag.is_some() {
        return text.into();
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => true.into(),
        "false" | "False" | "FALSE" => false.into(),
        _ => match (text.parse::<i64>(), text.parse::<f64>()) {
            (Ok(number), _) => number.into(),
            (_, Ok(number)) if number.is_finite() => number.into(),
            _ => text.into(),
        },
    }
}
