//! The JSON of a credential file, read as leniently as Google's Python and Node libraries do: the last of
//! duplicate keys counts; a number is accepted for text and text for a number. All texts are overwritten on
//! drop. Errors name the field and never quote its value.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, de, forward_to_deserialize_any};
use zeroize::Zeroizing;

use crate::secret::Secret;

/// Any JSON value.
pub(in crate::source) enum UntypedJson {
    Null,
    Flag(bool),
    Number(serde_json::Number),
    Text(Zeroizing<String>),
    List(Vec<UntypedJson>),
    Object(BTreeMap<String, UntypedJson>),
}

impl UntypedJson {
    fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Flag(_) => "true or false",
            Self::Number(_) => "a number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Object(_) => "an object",
        }
    }

    fn wrong<T>(&self, wanted: &str) -> Result<T, FieldError> {
        Err(FieldError { field: String::new(), what: format!("has to be {wanted}, and is {}", self.kind()) })
    }

    /// The text at `field` of an object: the key of exactly this name, else the path that its dots spell.
    /// `Err` if the value there is not text.
    pub(in crate::source) fn text(mut self, field: &str) -> Result<Option<Secret<String>>, FieldError> {
        let whole = matches!(&self, Self::Object(all) if all.contains_key(field));
        let keys: Vec<&str> = if whole { vec![field] } else { field.split('.').collect() };
        for (depth, key) in keys.into_iter().enumerate() {
            self = match self {
                Self::Object(mut all) => match all.remove(key) {
                    Some(found) => found,
                    None => return Ok(None),
                },
                other if depth == 0 => return other.wrong("an object"),
                _ => return Ok(None),
            };
        }
        match self {
            Self::Text(mut text) => Ok(Some(Secret::new(std::mem::take(&mut *text)))),
            other => other.wrong("text"),
        }
    }

    /// The value as a whole number, with any fraction cut off.
    fn whole(&self) -> Option<u64> {
        let number = match self {
            Self::Number(number) => number.as_f64()?,
            Self::Text(text) => text.trim().parse().ok()?,
            _ => return None,
        };
        let span = std::time::Duration::try_from_secs_f64(number.trunc()).ok()?;
        Some(span.as_secs())
    }
}

/// What is wrong with a field. Completes "its FIELD …".
#[derive(Debug)]
pub(in crate::source) struct FieldError {
    field: String,
    what: String,
}

impl FieldError {
    fn below(mut self, key: &str) -> Self {
        self.field = if self.field.is_empty() { key.to_owned() } else { format!("{key}.{}", self.field) };
        self
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field.as_str() {
            "" => write!(f, "it {}", self.what),
            field => write!(f, "its {field} {}", self.what),
        }
    }
}

impl std::error::Error for FieldError {}

impl de::Error for FieldError {
    /// Drops the message, because serde's text may quote the value.
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self { field: String::new(), what: "is not what is expected there".into() }
    }

    fn invalid_type(_: Unexpected<'_>, wanted: &dyn de::Expected) -> Self {
        Self { field: String::new(), what: format!("has to be {wanted}") }
    }
}

impl<'de> Deserialize<'de> for UntypedJson {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Anything;

        impl<'de> Visitor<'de> for Anything {
            type Value = UntypedJson;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_unit<E>(self) -> Result<UntypedJson, E> {
                Ok(UntypedJson::Null)
            }

            fn visit_bool<E>(self, flag: bool) -> Result<UntypedJson, E> {
                Ok(UntypedJson::Flag(flag))
            }

            fn visit_u64<E>(self, number: u64) -> Result<UntypedJson, E> {
                Ok(UntypedJson::Number(number.into()))
            }

            fn visit_i64<E>(self, number: i64) -> Result<UntypedJson, E> {
                Ok(UntypedJson::Number(number.into()))
            }

            fn visit_f64<E>(self, number: f64) -> Result<UntypedJson, E> {
                Ok(serde_json::Number::from_f64(number).map_or(UntypedJson::Null, UntypedJson::Number))
            }

            fn visit_str<E>(self, text: &str) -> Result<UntypedJson, E> {
                Ok(UntypedJson::Text(Zeroizing::new(text.to_owned())))
            }

            fn visit_string<E>(self, text: String) -> Result<UntypedJson, E> {
                Ok(UntypedJson::Text(Zeroizing::new(text)))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<UntypedJson, A::Error> {
                let mut all = Vec::new();
                while let Some(one) = list.next_element()? {
                    all.push(one);
                }
                Ok(UntypedJson::List(all))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UntypedJson, A::Error> {
                let mut all = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, UntypedJson>()? {
                    all.insert(key, value);
                }
                Ok(UntypedJson::Object(all))
            }
        }

        from.deserialize_any(Anything)
    }
}

impl<'de> Deserializer<'de> for UntypedJson {
    type Error = FieldError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        match self {
            Self::Null => visitor.visit_unit(),
            Self::Flag(flag) => visitor.visit_bool(flag),
            Self::Number(number) => match number.as_u64() {
                Some(whole) => visitor.visit_u64(whole),
                None => visitor.visit_f64(number.as_f64().unwrap_or_default()),
            },
            Self::Text(mut text) => visitor.visit_string(std::mem::take(&mut *text)),
            Self::List(list) => visitor.visit_seq(Elements(list.into_iter())),
            Self::Object(all) => visitor.visit_map(Entries { rest: all.into_iter(), value: None }),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        match self {
            Self::Null => visitor.visit_none(),
            some => visitor.visit_some(some),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        match self {
            Self::Text(_) => self.deserialize_any(visitor),
            Self::Number(number) => visitor.visit_string(number.to_string()),
            other => other.wrong("text"),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        self.deserialize_string(visitor)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        match self.whole() {
            Some(number) => visitor.visit_u64(number),
            None if matches!(self, Self::Number(_)) => Err(FieldError {
                field: String::new(),
                what: "has to be 0 or more, and a usual number".into(),
            }),
            None => self.wrong("a number"),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        match &self {
            Self::Flag(flag) => visitor.visit_bool(*flag),
            Self::Text(text) if text.eq_ignore_ascii_case("true") => visitor.visit_bool(true),
            Self::Text(text) if text.eq_ignore_ascii_case("false") => visitor.visit_bool(false),
            other => other.wrong("true or false"),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, FieldError> {
        self.deserialize_map(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        match self {
            Self::Object(_) => self.deserialize_any(visitor),
            other => other.wrong("an object"),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        match self {
            Self::List(_) => self.deserialize_any(visitor),
            other => other.wrong("a list"),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, FieldError> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct enum
        identifier ignored_any
    }
}

struct Elements(std::vec::IntoIter<UntypedJson>);

impl<'de> SeqAccess<'de> for Elements {
    type Error = FieldError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, FieldError> {
        self.0.next().map(|one| seed.deserialize(one)).transpose()
    }
}

struct Entries {
    rest: std::collections::btree_map::IntoIter<String, UntypedJson>,
    value: Option<(String, UntypedJson)>,
}

impl<'de> MapAccess<'de> for Entries {
    type Error = FieldError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, FieldError> {
        let Some((key, value)) = self.rest.next() else { return Ok(None) };
        self.value = Some((key.clone(), value));
        seed.deserialize(key.into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, FieldError> {
        let (key, value) = self.value.take().unwrap_or((String::new(), UntypedJson::Null));
        seed.deserialize(value).map_err(|wrong| wrong.below(&key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct File {
        text: Option<String>,
        secret: Option<Secret<String>>,
        number: Option<u64>,
        flag: Option<bool>,
        inside: Option<Box<File>>,
    }

    fn read(text: &str) -> Result<File, String> {
        File::deserialize(serde_json::from_str::<UntypedJson>(text).unwrap())
            .map_err(|wrong| wrong.to_string())
    }

    #[test]
    fn numbers_may_be_text_and_the_last_of_two_fields_counts() {
        let file = read(
            r#"{"text": 12, "number": "3600.5", "flag": "true", "text": 123456789012, "secret": null, "more": [{}],
                "inside": {"number": 3599.0, "secret": "s"}}"#,
        )
        .unwrap();
        assert_eq!(
            (file.text.as_deref(), file.number, file.flag),
            (Some("123456789012"), Some(3600), Some(true))
        );
        assert!(file.secret.is_none());
        let inside = file.inside.unwrap();
        assert_eq!((inside.number, inside.secret.unwrap().expose().as_str()), (Some(3599), "s"));
    }

    #[test]
    fn errors_name_the_field_and_quote_nothing() {
        for (text, why) in [
            (r#"{"text": ["canary"]}"#, "its text has to be text, and is a list"),
            (
                r#"{"inside": {"secret": {"a": "canary"}}}"#,
                "its inside.secret has to be text, and is an object",
            ),
            (r#"{"number": "canary"}"#, "its number has to be a number, and is text"),
            (r#"{"inside": "canary"}"#, "its inside has to be an object, and is text"),
            (r#"{"number": -1}"#, "its number has to be 0 or more, and a usual number"),
            (r#"["canary"]"#, "it has to be an object, and is a list"),
            (r#"{"flag": "canary"}"#, "its flag has to be true or false, and is text"),
        ] {
            assert_eq!(read(text).unwrap_err(), why);
        }
    }
}
