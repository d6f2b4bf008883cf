//! No file in `src` imports itself through others. The test reads imports as text and resolves what they
//! stand for.
//!
//! It follows `crate::`, `super::`, `self::` and the names of child modules, in `use` and inside code, and
//! resolves re-exports. A module and its ancestors may import each other.

use std::collections::{BTreeMap, BTreeSet};

use crate::architecture::{before_tests, sources};

/// Circles that are intended, each with its reason.
const ALLOWED: &[(&[&str], &str)] = &[];

/// `source::google` is `["source", "google"]`.
pub(crate) type Module = Vec<String>;

/// The imports of one file.
#[derive(Default)]
struct File {
    /// Absolute paths that it names.
    names: Vec<Module>,
    /// The names that its `use` lines define here, each with its path.
    brings: BTreeMap<String, Module>,
}

/// The tree of modules, read from their text.
struct Tree {
    files: BTreeMap<Module, File>,
}

fn module(file: &str) -> Module {
    let mut path: Module = file.trim_end_matches(".rs").split('/').map(String::from).collect();
    if matches!(path.last().map(String::as_str), Some("mod" | "lib")) {
        path.pop();
    }
    path
}

/// Removes comments, and strings, whose content may look like code.
fn bare(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['"', '\'', '/']) {
        out.push_str(&rest[..at]);
        let found = &rest[at..];
        let hashes = out.bytes().rev().take_while(|b| *b == b'#').count();
        let raw = out[..out.len() - hashes].ends_with('r');
        let skip = match found.as_bytes() {
            [b'/', b'/', ..] => found.find('\n').unwrap_or(found.len()),
            [b'"', ..] if raw => {
                let end = format!("\"{}", "#".repeat(hashes));
                found[1..].find(&end).map_or(found.len(), |length| 1 + length + end.len())
            }
            [b'"', ..] => {
                let mut escaped = false;
                let end = found[1..].find(|c: char| {
                    let ends = c == '"' && !escaped;
                    escaped = c == '\\' && !escaped;
                    ends
                });
                end.map_or(found.len(), |length| length + 2)
            }
            // A character; a lifetime has no second apostrophe.
            [b'\'', b'\\', ..] => 3 + found[3..].find('\'').map_or(0, |length| length + 1),
            [b'\'', ..] => {
                found.char_indices().nth(2).filter(|(_, c)| *c == '\'').map_or(1, |(end, _)| end + 1)
            }
            _ => {
                out.push('/');
                1
            }
        };
        rest = &found[skip..];
    }
    out + rest
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Every path of a `use` tree, with the name that it gets.
fn leaves(before: &[String], tree: &str, into: &mut Vec<(Module, String)>) {
    let (head, group) = tree.split_once('{').map_or((tree, None), |(head, group)| (head, Some(group)));
    let (head, alias) = head.split_once(" as ").map_or((head, None), |(head, alias)| (head, Some(alias)));
    let mut path = before.to_vec();
    path.extend(head.split("::").map(str::trim).filter(|part| !part.is_empty()).map(String::from));
    let Some(group) = group else {
        if path.last().is_some_and(|last| last == "self") {
            path.pop();
        }
        let name = alias.map_or_else(|| path.last().cloned(), |alias| Some(alias.trim().into()));
        into.extend(name.map(|name| (path, name)));
        return;
    };
    let (mut depth, mut start) = (0_i32, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            ',' | '}' if depth == 0 => {
                let part = group[start..at].trim();
                if !part.is_empty() {
                    leaves(&path, part, into);
                }
                start = at + 1;
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
}

impl Tree {
    fn of(texts: &BTreeMap<String, String>) -> Self {
        let mut tree = Self { files: BTreeMap::new() };
        for file in texts.keys().filter(|file| *file != "main.rs") {
            tree.files.insert(module(file), File::default());
        }
        let mut read = BTreeMap::new();
        for (file, text) in texts.iter().filter(|(file, _)| *file != "main.rs") {
            let module = module(file);
            read.insert(module.clone(), tree.read(&module, &bare(before_tests(text))));
        }
        tree.files = read;
        tree
    }

    fn read(&self, module: &[String], code: &str) -> File {
        let mut file = File::default();
        let mut rest = String::new();
        for statement in code.split(';') {
            let used = statement.rfind("use ").filter(|at| {
                let before = statement[..*at].trim_end();
                let before =
                    before.strip_suffix(')').map_or(before, |b| b.rsplit_once('(').map_or(b, |(b, _)| b));
                before.is_empty() || before.ends_with(['}', ']', '{']) || before.ends_with("pub")
            });
            rest.push_str(&statement[..used.unwrap_or(statement.len())]);
            rest.push(';');
            let Some(used) = used else { continue };
            let mut found = vec![];
            leaves(&[], statement[used + 4..].trim(), &mut found);
            for (path, name) in found {
                if let Some(path) = self.absolute(module, &path) {
                    file.brings.insert(name, path.clone());
                    file.names.push(path);
                }
            }
        }
        for (at, _) in rest.match_indices("::") {
            let start = rest[..at].rfind(|c: char| !is_word(c)).map_or(0, |end| end + 1);
            if rest[..start].ends_with([':', '.']) || start == at {
                continue;
            }
            let end = rest[at..].find(|c: char| !is_word(c) && c != ':').map_or(rest.len(), |end| at + end);
            let path: Module = rest[start..end].split("::").map(String::from).collect();
            file.names.extend(self.absolute(module, &path));
        }
        file
    }

    /// The path from the root of the crate; `None` if it leads to another crate.
    fn absolute(&self, module: &[String], path: &[String]) -> Option<Module> {
        let mut base = module.to_vec();
        let mut path = path;
        match path.first()?.as_str() {
            "crate" => return Some(path[1..].to_vec()),
            "self" => path = &path[1..],
            "super" => {
                while path.first().is_some_and(|part| part == "super") {
                    base.pop()?;
                    path = &path[1..];
                }
            }
            child => {
                base.push(child.into());
                self.files.get(&base)?;
                base.pop();
            }
        }
        base.extend_from_slice(path);
        Some(base)
    }

    /// The modules that a path leads to: the one that contains it and, if that one re-exports it, also the
    /// owner.
    fn behind(&self, path: &[String], seen: &mut BTreeSet<Module>) -> Vec<Module> {
        let known = (0..=path.len()).rev().find(|length| self.files.contains_key(&path[..*length]));
        let Some(length) = known else { return vec![] };
        let mut found = vec![path[..length].to_vec()];
        if let Some(name) = path.get(length)
            && let Some(brought) = self.files[&path[..length]].brings.get(name)
            && seen.insert(path.to_vec())
        {
            let whole: Module = brought.iter().chain(&path[length + 1..]).cloned().collect();
            found.extend(self.behind(&whole, seen));
        }
        found
    }

    fn imports(&self) -> BTreeMap<Module, BTreeSet<Module>> {
        let mut all = BTreeMap::new();
        for (from, file) in &self.files {
            let to = file.names.iter().flat_map(|path| self.behind(path, &mut BTreeSet::new()));
            let strange = |to: &Module| !to.starts_with(from) && !from.starts_with(to);
            all.insert(from.clone(), to.filter(strange).collect());
        }
        all
    }
}

/// Sets of modules that all reach each other (strongly connected components), the largest first.
fn circles(imports: &BTreeMap<Module, BTreeSet<Module>>) -> Vec<BTreeSet<String>> {
    fn reach<'a>(imports: &'a BTreeMap<Module, BTreeSet<Module>>, from: &'a Module) -> BTreeSet<&'a Module> {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(at) = next.pop() {
            next.extend(imports.get(at).into_iter().flatten().filter(|to| seen.insert(*to)));
        }
        seen
    }
    let reached: BTreeMap<&Module, BTreeSet<&Module>> =
        imports.keys().map(|module| (module, reach(imports, module))).collect();
    let mut found = BTreeSet::new();
    for (from, to) in reached.iter().filter(|(from, to)| to.contains(*from)) {
        let circle = to.iter().filter(|other| reached.get(*other).is_some_and(|back| back.contains(from)));
        found.insert(circle.map(|module| module.join("::")).collect::<BTreeSet<_>>());
    }
    let mut found: Vec<_> = found.into_iter().collect();
    found.sort_by_key(|circle| std::cmp::Reverse(circle.len()));
    found
}

/// The modules of other files that each file of `src` names, re-exports resolved; not its ancestors and children.
pub(crate) fn imports() -> BTreeMap<Module, BTreeSet<Module>> {
    Tree::of(&sources()).imports()
}

fn told(texts: &BTreeMap<String, String>) -> Vec<BTreeSet<String>> {
    circles(&Tree::of(texts).imports())
}

#[test]
fn files_do_not_import_in_circles() {
    let tree = Tree::of(&sources());
    let imports = tree.imports();
    let found = circles(&imports);
    let allowed: Vec<BTreeSet<String>> =
        ALLOWED.iter().map(|(circle, _)| circle.iter().map(|name| (*name).into()).collect()).collect();
    let mut wrong = String::new();
    for circle in found.iter().filter(|circle| !allowed.contains(circle)) {
        wrong.push_str(&format!("{} files: {circle:?}\n", circle.len()));
        for (from, to) in imports.iter().filter(|(from, _)| circle.contains(&from.join("::"))) {
            let to: Vec<_> = to.iter().map(|to| to.join("::")).filter(|to| circle.contains(to)).collect();
            wrong.push_str(&format!("  {} -> {}\n", from.join("::"), to.join(", ")));
        }
    }
    assert!(wrong.is_empty(), "{wrong}break the circle, or put it on the list with its reason");
    let gone: Vec<_> = allowed.iter().filter(|circle| !found.contains(circle)).collect();
    assert!(gone.is_empty(), "on the list and not there any more: {gone:?}");
}

fn made_up(files: &[(&str, &str)]) -> Vec<Vec<String>> {
    let texts = files.iter().map(|(file, text)| (String::from(*file), String::from(*text))).collect();
    told(&texts).into_iter().map(|circle| circle.into_iter().collect()).collect()
}

#[test]
fn circles_are_found_however_they_are_written() {
    let circle = vec![vec!["a".to_string(), "b".to_string(), "c".to_string()]];
    let lib = ("lib.rs", "pub mod a; mod b; mod c;");
    let c = ("c.rs", "use crate::{x, a::A};");
    for a in [
        "use crate::b::B;",
        "use super::b::{self, B};",
        "fn f() { let x = 1; crate::b::g(); }",
        "struct A(super::b::B);",
        "pub(crate) use crate::b as d;",
        "const X: char = '\"'; use crate::b::B;",
        "const X: char = '\\''; use crate::b::B;",
        "const URL: &str = \"https://x\"; use crate::b::B;",
        "fn f<'a>(x: &'a str) -> &'a crate::b::B { \"\" }",
    ] {
        assert_eq!(made_up(&[lib, ("a.rs", a), ("b.rs", "use crate::c::C;"), c]), circle, "{a}");
    }
    // Through a re-export of their parent, which may import its children.
    let parent = ("p/mod.rs", "mod a; mod b; pub use b::B; use a::A;");
    let files = [parent, ("p/a.rs", "use super::B;"), ("p/b.rs", "use crate::p::a::A;")];
    assert_eq!(made_up(&files), [["p::a", "p::b"]]);
}

#[test]
fn imports_without_a_circle_are_not_reported() {
    let lib = ("lib.rs", "mod a; mod b;");
    for a in [
        "// use crate::b::B;",
        "const TEXT: &str = \"crate::b::B\";",
        "const RAW: &str = r#\"\"crate::b::B\"#;",
        "const URL: &str = \"https://crate::b::B\";",
        "use crate::c::B;",
        "fn f() {}\n#[cfg(test)]\nmod tests { use crate::b::B; }",
    ] {
        assert!(made_up(&[lib, ("a.rs", a), ("b.rs", "use crate::a::A;")]).is_empty(), "{a}");
    }
    // A parent and its child.
    let files = [("p/mod.rs", "mod a; use a::A; struct P;"), ("p/a.rs", "use super::P;")];
    assert!(made_up(&files).is_empty());
}
