//! A strict reader of the small XML documents that AWS answers with: elements and text, nothing else. Attributes
//! are skipped (they are name spaces); comments, CDATA, document types and unknown entities are refused, and so are
//! repeated elements, because it would be unclear which of them counts.

use crate::secret::Secret;

/// An answer of the Security Token Service has a few KiB and some ten elements.
const LARGEST: usize = 64 << 10;
const DEEPEST: usize = 8;
const MOST: usize = 64;

/// The elements that hold text, each with its path from the root: `Root/Inner/Name`.
#[derive(Debug)]
pub(super) struct Document(Vec<(String, Secret<String>)>);

/// An element that has begun.
struct Open<'a> {
    name: &'a str,
    text: Secret<String>,
    has_children: bool,
}

impl Document {
    /// `None` if it is not a document of this kind.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok().filter(|text| text.len() <= LARGEST)?.trim();
        let mut rest = match text.strip_prefix("<?xml ") {
            Some(declared) => declared.split_once("?>")?.1.trim_start(),
            None => text,
        };
        let mut open: Vec<Open<'_>> = vec![];
        let mut leaves: Vec<(String, Secret<String>)> = vec![];
        while let Some(at) = rest.find('<') {
            let (text, tag) = rest.split_at(at);
            let (tag, after) = tag.get(1..)?.split_once('>')?;
            match open.last_mut() {
                Some(element) => add(element, text)?,
                None if text.trim().is_empty() => {}
                None => return None,
            }
            rest = after;
            match tag.strip_prefix('/') {
                Some(name) => close(&mut open, name.trim_end(), &mut leaves)?,
                None => begin(&mut open, tag, &mut leaves)?,
            }
            if open.is_empty() {
                break;
            }
        }
        (open.is_empty() && rest.trim().is_empty() && !leaves.is_empty()).then_some(Self(leaves))
    }

    /// The text of the element at this path.
    pub(super) fn text(&self, path: &str) -> Option<&Secret<String>> {
        self.0.iter().find(|(known, _)| known == path).map(|(_, text)| text)
    }
}

fn begin<'a>(
    open: &mut Vec<Open<'a>>,
    tag: &'a str,
    leaves: &mut Vec<(String, Secret<String>)>,
) -> Option<()> {
    let (tag, is_empty) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
    let name = tag.split_ascii_whitespace().next()?;
    let fits = tag.starts_with(name) && !tag.contains('<') && name.bytes().all(|b| b.is_ascii_alphanumeric());
    if !fits || open.len() >= DEEPEST {
        return None;
    }
    if let Some(parent) = open.last_mut() {
        parent.has_children = true;
    }
    open.push(Open { name, text: Secret::new(String::new()), has_children: false });
    if is_empty { close(open, name, leaves) } else { Some(()) }
}

fn close(open: &mut Vec<Open<'_>>, name: &str, leaves: &mut Vec<(String, Secret<String>)>) -> Option<()> {
    let mut path = open.iter().map(|element| element.name).collect::<Vec<_>>().join("/");
    let element = open.pop().filter(|element| element.name == name)?;
    if element.has_children {
        // Text between elements is not in a document of this kind.
        return element.text.expose().trim().is_empty().then_some(());
    }
    let is_new = !leaves.iter().any(|(known, _)| *known == path);
    (is_new && leaves.len() < MOST).then(|| leaves.push((std::mem::take(&mut path), element.text)))
}

/// Adds text with its entities decoded (XML 1.0 section 4.6).
fn add(element: &mut Open<'_>, text: &str) -> Option<()> {
    let mut whole = element.text.expose().clone();
    let mut parts = text.split('&');
    whole.push_str(parts.next()?);
    for part in parts {
        let (entity, after) = part.split_once(';')?;
        whole.push(match entity {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            "apos" => '\'',
            _ => numbered(entity)?,
        });
        whole.push_str(after);
    }
    element.text = Secret::new(whole);
    Some(())
}

fn numbered(entity: &str) -> Option<char> {
    let number = entity.strip_prefix('#')?;
    let code = match number.strip_prefix('x') {
        Some(hex) => u32::from_str_radix(hex, 16).ok()?,
        None => number.parse().ok()?,
    };
    char::from_u32(code).filter(|c| !c.is_control() || c.is_ascii_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(xml: &str, path: &str) -> Option<String> {
        Document::read(xml.as_bytes())?.text(path).map(|text| text.expose().clone())
    }

    #[test]
    fn elements_are_found_by_their_path() {
        let xml = "<?xml version=\"1.0\"?>\n<R xmlns=\"https://a.example/\">\n <A>\n  <B>one &amp; &#x41;&#66;</B>\n  <C/>\n </A>\n\
                   <D>/+=</D></R>\n";
        assert_eq!(text(xml, "R/A/B").as_deref(), Some("one & AB"));
        assert_eq!(text(xml, "R/A/C").as_deref(), Some(""));
        assert_eq!(text(xml, "R/D").as_deref(), Some("/+="));
        assert_eq!(text(xml, "R/B"), None);
        assert!(!format!("{:?}", Document::read(xml.as_bytes())).contains("one"));
    }

    #[test]
    fn xml_with_entities_or_doctype_is_refused() {
        for bad in [
            "",
            "text",
            "<A>",
            "<A></B>",
            "<A>x</A><B>y</B>",
            "<A>x</A>y",
            "x<A>y</A>",
            "<A>&unknown;</A>",
            "<A>&#0;</A>",
            "<A>& </A>",
            "<A><!-- c --></A>",
            "<A><![CDATA[x]]></A>",
            "<!DOCTYPE A [<!ENTITY e \"x\">]><A>&e;</A>",
            "<A><B>x</B><B>y</B></A>",
            "<A>mixed <B>x</B></A>",
            "<A><?pi x?></A>",
            "< A>x</A>",
            "<A:B>x</A:B>",
        ] {
            assert!(Document::read(bad.as_bytes()).is_none(), "{bad}");
        }
        let deep = format!("{}x{}", "<A>".repeat(9), "</A>".repeat(9));
        assert!(Document::read(deep.as_bytes()).is_none());
        let many: String = (0..65).map(|n| format!("<E{n}>x</E{n}>")).collect();
        assert!(Document::read(format!("<A>{many}</A>").as_bytes()).is_none());
        assert!(Document::read(format!("<A>{}</A>", "x".repeat(LARGEST)).as_bytes()).is_none());
        assert!(Document::read(b"<A>\xff</A>").is_none());
    }
}
