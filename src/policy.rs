//! Assigns identities to containers. The rules are the operator's. They are read at start, and again when the
//! config file changes (`app/reload.rs`).
//!
//! A rule matches, does not match, or is unknown, because a kfp task does not always show which task it is.
//! The first rule in order that matches or is unknown decides. If it is unknown and the possible outcomes
//! differ, the config's `unknown` applies, never a later rule or the default.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use crate::cloud::Cloud;
use crate::quote;
use crate::workload::{By, Fit, Identity, Pattern, Task};

/// One `[[rule]]`: all patterns must match.
#[derive(Clone, Debug)]
pub struct Rule {
    pub patterns: Vec<Pattern>,
    /// Identities that a container may choose instead, by `KFP_CREDS_IDENTITY` in its create request.
    pub choose: Vec<Arc<Identity>>,
    /// `None` is the config's word `none`: no identity, and the container passes unchanged.
    pub identity: Option<Arc<Identity>>,
    /// A matching container may join the network of another one with the same identity.
    pub join: bool,
}

impl Rule {
    fn fit(&self, task: &Task) -> Fit {
        self.patterns.iter().map(|pattern| pattern.fit(task)).min().unwrap_or(Fit::Yes)
    }
}

/// The decision on a container.
#[derive(Clone, Debug)]
pub enum Decision {
    /// Attach it with this identity. It may still be skipped for what it could do to other containers.
    Attach(Arc<Identity>, By),
    /// Leave it alone; the text gives the reason, for the one line that is printed.
    Pass(String),
}

/// The operator's rules, and the defaults after them.
#[derive(Clone, Debug)]
pub struct Policy {
    pub rules: Vec<Rule>,
    /// The identity of containers that no rule matches.
    pub default: Option<Arc<Identity>>,
    /// Identities that those containers may choose instead.
    pub choose: Vec<Arc<Identity>>,
    /// Containers that do not look like kfp tasks get the default too (`--all`).
    pub all: bool,
    /// The identity of kfp tasks for which it is unknown whether a rule matches; `None` is no identity.
    pub unknown: Option<Arc<Identity>>,
}

/// The result of evaluating the rules.
#[derive(Clone, Copy, Debug)]
enum Settled {
    /// The rule that decides, if any.
    By(Option<usize>),
    /// It is unknown whether this rule matches, and the outcome depends on it.
    Doubt(usize),
}

/// Why the rule with this number (from 1) could not decide, and the remedy.
pub fn doubt(rule: usize) -> String {
    format!(
        "whether rule {rule} matches is unknown, because this kfp task does not show which one it is; name its \
         compiled pipeline in compiled_pipelines, or the identity of such tasks in unknown"
    )
}

/// A decision with its reasons.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// Why each rule before the one that decided did not match.
    pub misses: Vec<String>,
    pub by: String,
    pub decision: Decision,
}

impl Policy {
    /// Every identity that a container can get, by a rule, a choice or a default.
    pub fn identities(&self) -> impl Iterator<Item = &Arc<Identity>> {
        let of_rules = self.rules.iter().flat_map(|rule| rule.identity.iter().chain(&rule.choose));
        self.default.iter().chain(&self.choose).chain(&self.unknown).chain(of_rules)
    }

    /// Whether any identity that a container can get has access to AWS.
    pub fn has_aws(&self) -> bool {
        self.identities().any(|identity| identity.has(Cloud::Aws))
    }

    /// A matching rule decides for any container; the default applies to kfp tasks, and to all containers
    /// with `--all`.
    pub fn decide(&self, task: &Task) -> Decision {
        self.decision(task, self.settle(task))
    }

    /// The same decision, with its reasons.
    pub fn explain(&self, task: &Task) -> Explanation {
        let settled = self.settle(task);
        let decisive = match settled {
            Settled::By(by) => by,
            Settled::Doubt(index) => Some(index),
        };
        let before = &self.rules[..decisive.unwrap_or(self.rules.len())];
        let misses = before.iter().enumerate().filter_map(|(index, rule)| why(index, rule, task));
        let mut misses: Vec<String> = misses.collect();
        let after = |index: usize| match self.rules.len() - index - 1 {
            0 => String::new(),
            1 => "; the rule after it is not evaluated".into(),
            rest => format!("; the {rest} after it are not evaluated"),
        };
        let by = match settled {
            Settled::By(Some(index)) => format!("rule {} matches{}", index + 1, after(index)),
            Settled::Doubt(index) => {
                misses.extend(why(index, &self.rules[index], task));
                let gets = self.unknown.as_ref().map_or("none", |identity| &identity.name);
                format!("rule {} may match, and it matters: unknown = \"{gets}\" applies", index + 1)
            }
            Settled::By(None) if !task.kfp && !self.all => "no rule matches, and it is not a kfp task".into(),
            Settled::By(None) => "no rule matches: the default".into(),
        };
        Explanation { misses, by, decision: self.decision(task, settled) }
    }

    /// Whether the deciding rule lets a container join another one's network.
    pub fn lets_join(&self, by: By) -> bool {
        matches!(by, By::Rule(number) if self.rules.get(number - 1).is_some_and(|rule| rule.join))
    }

    fn settle(&self, task: &Task) -> Settled {
        let mut possible = vec![];
        let mut last = None;
        for (index, rule) in self.rules.iter().enumerate() {
            match rule.fit(task) {
                Fit::No => {}
                Fit::Unknown => possible.push(index),
                Fit::Yes => {
                    last = Some(index);
                    break;
                }
            }
        }
        let Some(first) = possible.first() else { return Settled::By(last) };
        let sure = self.outcome(task, last);
        let same = |index: &usize| gives_the_same(&self.outcome(task, Some(*index)), &sure);
        if possible.iter().all(same) { Settled::By(last) } else { Settled::Doubt(*first) }
    }

    fn decision(&self, task: &Task, settled: Settled) -> Decision {
        match (settled, &self.unknown) {
            (Settled::By(by), _) => self.outcome(task, by),
            (Settled::Doubt(index), Some(identity)) => {
                Decision::Attach(identity.clone(), By::Unknown(index + 1))
            }
            (Settled::Doubt(index), None) => Decision::Pass(doubt(index + 1)),
        }
    }

    fn outcome(&self, task: &Task, matching: Option<usize>) -> Decision {
        let by = matching.map_or(By::Default, |index| By::Rule(index + 1));
        let (identity, choose, none) = match matching {
            Some(index) => {
                let rule = &self.rules[index];
                (&rule.identity, &rule.choose, format!("{by} says none"))
            }
            None if !task.kfp && !self.all => {
                return Decision::Pass("not a kfp task; attach it with --all or a [[rule]]".into());
            }
            None => (&self.default, &self.choose, "the default identity is none".into()),
        };
        // If nothing can be chosen, the container's request is ignored. Otherwise a container that requests an
        // identity which it may not have gets none: it must not get another one instead.
        if let Some(requested) = task.requested.as_ref().filter(|_| !choose.is_empty()) {
            let own = identity.iter().chain(choose).find(|identity| identity.name == *requested);
            return own.map_or_else(
                || Decision::Pass(format!("it may not choose the identity {requested}")),
                |identity| Decision::Attach(identity.clone(), by),
            );
        }
        identity.as_ref().map_or(Decision::Pass(none), |identity| Decision::Attach(identity.clone(), by))
    }
}

fn gives_the_same(one: &Decision, other: &Decision) -> bool {
    match (one, other) {
        (Decision::Attach(one, _), Decision::Attach(other, _)) => one.name == other.name,
        (Decision::Pass(_), Decision::Pass(_)) => true,
        (Decision::Attach(..), Decision::Pass(_)) | (Decision::Pass(_), Decision::Attach(..)) => false,
    }
}

/// The pattern that keeps a rule from matching.
fn why(index: usize, rule: &Rule, task: &Task) -> Option<String> {
    let rank = |pattern: &&Pattern| pattern.fit(task);
    let pattern = rule.patterns.iter().min_by_key(rank).filter(|pattern| !pattern.fits(task))?;
    let Pattern { part, glob } = pattern;
    let (number, fit) = (index + 1, pattern.fit(task));
    let glob = quote::name(&glob.to_string());
    Some(match (fit, part.of(task)) {
        (Fit::Unknown, _) => {
            format!("rule {number} is unknown: {part} has to be {glob}, but the task does not show it")
        }
        (_, Some(value)) => {
            let value = quote::name(value);
            format!("rule {number} does not match: {part} has to be {glob}, but it is {value}")
        }
        (_, None) => format!("rule {number} does not match: {part} has to be {glob}, but it has none"),
    })
}

/// What a container may request from Google.
fn of_google(text: &mut String, identity: &Identity) {
    let account = identity.service_account.as_deref().unwrap_or("your own account");
    let _ = writeln!(text, "account       {account}");
    if !identity.others.is_empty() {
        let _ = writeln!(text, "others        {}", identity.others.join(" "));
    }
    let strict = if identity.strict { " (strict: others are refused)" } else { "" };
    let _ = writeln!(text, "scopes        {}{strict}", identity.scopes);
    if let Some(subject) = &identity.subject {
        let _ = writeln!(text, "stands in     for {subject}");
    }
    for rule in identity.boundary.iter().flat_map(|boundary| &boundary.0) {
        let _ = write!(text, "boundary      {}: {}", rule.bucket, rule.permissions.join(" "));
        let _ = match &rule.condition {
            Some(condition) => writeln!(text, ", if {}", condition.expression),
            None => writeln!(text),
        };
    }
    let audiences = identity.audiences.join(" ");
    let _ = writeln!(text, "audiences     {}", if audiences.is_empty() { "any" } else { &audiences });
    let _ = writeln!(text, "lifetime      {} s", identity.lifetime.as_secs());
}

/// What `kfp-creds explain` prints.
impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for miss in &self.misses {
            writeln!(f, "{miss}")?;
        }
        writeln!(f, "{}", self.by)?;
        let identity = match &self.decision {
            Decision::Pass(why) => return writeln!(f, "no identity: {why}"),
            Decision::Attach(identity, _) => identity,
        };
        let mut text = String::new();
        let _ = writeln!(text, "identity      {}", identity.name);
        match identity.google {
            true => of_google(&mut text, identity),
            false => text.push_str("account       nothing of Google\n"),
        }
        if let Some(aws) = &identity.aws {
            let _ = writeln!(text, "aws           {aws}");
        }
        if let Some(azure) = &identity.azure {
            let _ = writeln!(text, "azure         {azure}");
        }
        if let Some(rate) = identity.rate {
            let _ = writeln!(text, "rate          {rate} a minute");
        }
        if identity.isolate {
            text.push_str("tokens        its own, shared with no other container\n");
        }
        if identity.kill_switch {
            text.push_str("kill switch   its service accounts may be disabled by hand\n");
        }
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::{Part, Unknown};

    fn identity(name: &str) -> Arc<Identity> {
        Arc::new(Identity { name: name.into(), ..Identity::default() })
    }

    fn task(pipeline: &str, component: &str) -> Task {
        let name = |text: &str| (!text.is_empty()).then(|| text.to_string());
        Task {
            kfp: !pipeline.is_empty(),
            pipeline: name(pipeline),
            component: name(component),
            image: "python:3.11".into(),
            ..Task::default()
        }
    }

    fn rule(patterns: &[(Part, &str)], identity: Option<Arc<Identity>>) -> Rule {
        let patterns = patterns.iter().map(|(part, glob)| Pattern::new(part.clone(), glob)).collect();
        Rule { patterns, choose: vec![], identity, join: false }
    }

    fn policy(rules: Vec<Rule>) -> Policy {
        Policy { rules, default: Some(identity("default")), choose: vec![], all: false, unknown: None }
    }

    fn named(policy: &Policy, task: &Task) -> String {
        match policy.decide(task) {
            Decision::Attach(identity, _) => identity.name.clone(),
            Decision::Pass(why) => why,
        }
    }

    #[test]
    fn a_cloud_without_an_identity_is_not_reported() {
        let aws = Some(Arc::new(crate::cloud::AwsIdentity::default()));
        let other = Arc::new(Identity { google: false, aws, ..Identity::default() });
        let mut policy = policy(vec![rule(&[(Part::Pipeline, "etl")], Some(other))]);
        assert!(policy.has_aws());
        let text = policy.explain(&task("etl", "load")).to_string();
        for of_google in ["scopes", "audiences", "lifetime", "your own account"] {
            assert!(!text.contains(of_google), "{text}");
        }
        assert!(text.contains("nothing of Google\naws           your own session\n"), "{text}");
        assert!(policy.explain(&task("train", "load")).to_string().contains("\nscopes  "));
        policy.rules.clear();
        assert!(!policy.has_aws(), "[aws] alone gives nobody anything");
    }

    #[test]
    fn first_match_wins_and_all_given_patterns_must_match() {
        let policy = policy(vec![
            rule(&[(Part::Pipeline, "etl-*"), (Part::Component, "load*")], Some(identity("loader"))),
            rule(&[(Part::Pipeline, "etl-*"), (Part::Component, "secretive")], None),
            rule(&[(Part::Component, "load*")], Some(identity("other"))),
        ]);
        assert_eq!(named(&policy, &task("etl-1", "load-2")), "loader");
        assert_eq!(named(&policy, &task("train", "load")), "other");
        assert_eq!(named(&policy, &task("etl-1", "transform")), "default");
        assert_eq!(named(&policy, &task("etl-1", "secretive")), "rule 2 says none");
        assert!(named(&policy, &task("", "")).starts_with("not a kfp task"));
    }

    #[test]
    fn every_pattern_of_a_rule_is_checked() {
        let digest = "repo/image@sha256:0123";
        let labels =
            [("com.docker.compose.project", "shop"), ("com.docker.compose.service", "web"), ("team", "a")];
        let full = Task {
            function: Some("extract".into()),
            iteration: Some("for-loop-1-iteration-2".into()),
            image: digest.into(),
            labels: labels.map(|(name, value)| (name.into(), value.into())).into(),
            ..task("etl", "load")
        };
        for (part, good, bad) in [
            (Part::Pipeline, "e?l", "el"),
            (Part::Component, "load", "Load"),
            (Part::Function, "ex*", "*ex"),
            (Part::Iteration, "*-iteration-2", "*-iteration-1"),
            (Part::Image, "*@sha256:0123", "*@sha256:0124"),
            (Part::ComposeProject, "shop", "team"),
            (Part::ComposeService, "web", "w"),
            (Part::Label("team".into()), "a", "b"),
            (Part::Label("team".into()), "*", "?b"),
        ] {
            let of = |glob: &str| policy(vec![rule(&[(part.clone(), glob)], Some(identity("it")))]);
            assert_eq!(named(&of(good), &full), "it", "{part} {good}");
            assert_eq!(named(&of(bad), &full), "default", "{part} {bad}");
            if part != Part::Image {
                assert_eq!(
                    named(&of("*"), &Task { kfp: true, ..Task::default() }),
                    "default",
                    "{part} is absent"
                );
            }
        }
    }

    #[test]
    fn a_requested_identity_counts_if_the_config_allows_it() {
        let requesting = |requested: &str| Task { requested: Some(requested.into()), ..task("etl", "load") };
        let mut policy = policy(vec![rule(&[(Part::Pipeline, "fixed")], Some(identity("fixed")))]);
        assert_eq!(named(&policy, &requesting("admin")), "default", "nothing can be chosen");
        policy.choose = vec![identity("reader")];
        assert_eq!(named(&policy, &requesting("reader")), "reader");
        assert_eq!(named(&policy, &requesting("default")), "default");
        assert_eq!(named(&policy, &requesting("admin")), "it may not choose the identity admin");
        assert_eq!(named(&policy, &task("etl", "load")), "default");
        let fixed = Task { pipeline: Some("fixed".into()), ..requesting("reader") };
        assert_eq!(named(&policy, &fixed), "fixed", "the rule does not let it choose");
        policy.rules[0].choose = vec![identity("writer")];
        let ruled = |requested: &str| Task { pipeline: Some("fixed".into()), ..requesting(requested) };
        assert_eq!(named(&policy, &ruled("writer")), "writer", "in the rule's own list");
        assert_eq!(named(&policy, &ruled("fixed")), "fixed");
        assert_eq!(
            named(&policy, &ruled("reader")),
            "it may not choose the identity reader",
            "the default's list is no rule's"
        );
    }

    /// A kfp task that does not show which task it is.
    fn hidden() -> Task {
        Task { unknown: Unknown::PLACE, kfp: true, ..task("", "") }
    }

    #[test]
    fn a_rule_that_could_match_is_not_skipped() {
        let narrow =
            rule(&[(Part::Pipeline, "uploads"), (Part::Component, "upload")], Some(identity("narrow")));
        let mut policy = policy(vec![narrow]);
        let said = named(&policy, &hidden());
        assert!(said.starts_with("whether rule 1 matches is unknown"), "{said}");
        assert!(said.contains("compiled_pipelines") && said.contains(" unknown"), "{said}");
        // The visible part may be enough to rule it out.
        let elsewhere = Unknown { pipeline: false, ..Unknown::PLACE };
        let elsewhere = Task { pipeline: Some("etl".into()), unknown: elsewhere, ..hidden() };
        assert_eq!(named(&policy, &elsewhere), "default");
        // A container of another kind has no hidden task properties.
        policy.all = true;
        assert_eq!(named(&policy, &task("", "")), "default");
        policy.unknown = Some(identity("little"));
        let Decision::Attach(little, By::Unknown(1)) = policy.decide(&hidden()) else { panic!() };
        assert_eq!(little.name, "little");
        policy.unknown = None;
        policy.rules[0].identity = Some(identity("default"));
        assert_eq!(named(&policy, &hidden()), "default", "it comes to the same");
        policy.rules[0].identity = None;
        assert!(named(&policy, &hidden()).starts_with("whether rule 1"), "a rule that says none, too");
    }

    #[test]
    fn rules_apply_in_order_when_one_is_unknown() {
        let component = |glob: &str, name: &str| rule(&[(Part::Component, glob)], Some(identity(name)));
        let image = |name: &str| rule(&[(Part::Image, "python*")], Some(identity(name)));
        let decided = |rules: Vec<Rule>| named(&policy(rules), &hidden());
        assert_eq!(
            decided(vec![image("first"), component("a", "other")]),
            "first",
            "it matches, and is first"
        );
        assert!(decided(vec![component("a", "other"), image("first")]).starts_with("whether rule 1"));
        assert_eq!(decided(vec![component("a", "first"), image("first"), component("b", "x")]), "first");
        assert!(
            decided(vec![component("a", "first"), component("b", "x"), image("first")])
                .starts_with("whether rule 1")
        );
        for part in [Part::Pipeline, Part::Component, Part::Function, Part::Iteration] {
            let rules = vec![rule(&[(part.clone(), "*")], Some(identity("it")))];
            assert!(decided(rules).starts_with("whether rule 1"), "{part}");
        }
        for part in [Part::ComposeProject, Part::ComposeService, Part::Label("team".into())] {
            assert_eq!(decided(vec![rule(&[(part, "*")], Some(identity("it")))]), "default");
        }
    }

    /// Holds whichever identity such a task requests.
    #[test]
    fn unknown_parts_change_nothing_unless_a_rule_tests_them() {
        let requesting = |requested: &str| Task { requested: Some(requested.into()), ..hidden() };
        let shown = |task: &Task| Task { unknown: Unknown::default(), ..task.clone() };
        let labelled = rule(&[(Part::Label("team".into()), "a")], Some(identity("a")));
        let mut policy = policy(vec![rule(&[(Part::Image, "busybox*")], None), labelled]);
        policy.choose = vec![identity("reader")];
        policy.unknown = Some(identity("little"));
        for task in [hidden(), requesting("reader"), requesting("admin")] {
            assert_eq!(named(&policy, &task), named(&policy, &shown(&task)));
            assert_eq!(policy.explain(&task).to_string(), policy.explain(&shown(&task)).to_string());
        }
    }

    #[test]
    fn an_unknown_rule_is_explained() {
        let rules = vec![
            rule(&[(Part::Image, "busybox*"), (Part::Component, "a")], None),
            rule(&[(Part::Component, "upload")], Some(identity("narrow"))),
            rule(&[(Part::Image, "python*")], Some(identity("wide"))),
        ];
        let text = policy(rules.clone()).explain(&hidden()).to_string();
        assert_eq!(
            text,
            format!(
                "rule 1 does not match: image has to be busybox*, but it is python:3.11\n\
                 rule 2 is unknown: component has to be upload, but the task does not show it\n\
                 rule 2 may match, and it matters: unknown = \"none\" applies\nno identity: {}\n",
                doubt(2)
            )
        );
        let same =
            Policy { rules: vec![rules[1].clone()], default: Some(identity("narrow")), ..policy(vec![]) };
        let text = same.explain(&hidden()).to_string();
        assert!(text.starts_with("rule 1 is unknown: component has to be upload"), "{text}");
        assert!(text.contains("no rule matches: the default\nidentity      narrow"), "{text}");
    }

    #[test]
    fn explain_gives_the_decision_with_reasons() {
        let policy = policy(vec![
            rule(&[(Part::Pipeline, "etl"), (Part::Function, "f")], None),
            rule(&[(Part::Component, "load")], Some(identity("loader"))),
            rule(&[(Part::Component, "*")], None),
        ]);
        assert_eq!(
            policy.explain(&task("etl", "load")).to_string(),
            "rule 1 does not match: function has to be f, but it has none\n\
             rule 2 matches; the rule after it is not evaluated\nidentity      loader\naccount       your own account\n\
             scopes        https://www.googleapis.com/auth/cloud-platform\naudiences     any\nlifetime      3600 s\n"
        );
        let boundary = crate::token::Boundary(vec![crate::token::BoundaryRule {
            bucket: "data".into(),
            permissions: vec!["inRole:roles/storage.objectViewer".into()],
            condition: Some(crate::token::AccessCondition {
                title: None,
                description: None,
                expression: "resource.name.startsWith('x')".into(),
            }),
        }]);
        let all = Identity {
            strict: true,
            isolate: true,
            kill_switch: true,
            rate: Some(9),
            subject: Some("a@b.example".into()),
            boundary: Some(Arc::new(boundary)),
            ..Identity::clone(&identity("all"))
        };
        let all = Policy { default: Some(Arc::new(all)), rules: vec![], ..policy.clone() };
        assert_eq!(
            all.explain(&task("x", "y")).to_string(),
            "no rule matches: the default\nidentity      all\naccount       your own account\n\
             scopes        https://www.googleapis.com/auth/cloud-platform (strict: others are refused)\n\
             stands in     for a@b.example\n\
             boundary      data: inRole:roles/storage.objectViewer, if resource.name.startsWith('x')\n\
             audiences     any\nlifetime      3600 s\nrate          9 a minute\n\
             tokens        its own, shared with no other container\n\
             kill switch   its service accounts may be disabled by hand\n"
        );
        assert_eq!(
            policy.explain(&task("x", "y")).to_string(),
            "rule 1 does not match: pipeline has to be etl, but it is x\n\
             rule 2 does not match: component has to be load, but it is y\nrule 3 matches\nno identity: rule 3 says none\n"
        );
        let other = policy.explain(&Task { image: "i".into(), ..Task::default() });
        assert!(other.to_string().ends_with(
            "no rule matches, and it is not a kfp task\nno identity: not a kfp task; attach it with --all or a [[rule]]\n"
        ));
    }
}
