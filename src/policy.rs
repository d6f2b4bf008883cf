//! Which container gets which identity. The rules are the operator's and are read at start.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use crate::quote;
use crate::workload::{By, Identity, Pattern, Task};

/// One `[[rule]]`: all patterns must match; the first rule that matches decides.
#[derive(Clone, Debug)]
pub struct Rule {
    pub patterns: Vec<Pattern>,
    /// What a container may choose instead, by `KFP_CREDS_IDENTITY` in its create request.
    pub choose: Vec<Arc<Identity>>,
    /// `None` is the word `none` of the config: no identity, and the container passes untouched.
    pub identity: Option<Arc<Identity>>,
}

impl Rule {
    /// The first pattern that does not match; `None` when the rule matches.
    fn miss(&self, task: &Task) -> Option<&Pattern> {
        self.patterns.iter().find(|pattern| !pattern.fits(task))
    }
}

/// What is to happen with a container.
#[derive(Clone, Debug)]
pub enum Decision {
    /// Attach it, as this identity. It may still be passed over for what it can do to its neighbours.
    Attach(Arc<Identity>, By),
    /// Leave it alone; the text says why, for the one line that is printed.
    Pass(String),
}

/// The operator's rules and what stands behind them.
#[derive(Clone, Debug)]
pub struct Policy {
    pub rules: Vec<Rule>,
    /// For containers that no rule names.
    pub default: Option<Arc<Identity>>,
    /// What those may choose instead.
    pub choose: Vec<Arc<Identity>>,
    /// Containers that do not look like kfp tasks get the default as well (`--all`).
    pub all: bool,
}

/// A decision with what led to it.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// Why each rule before the one that decided did not match.
    pub misses: Vec<String>,
    pub by: String,
    pub decision: Decision,
}

impl Policy {
    /// A rule that names a container decides, whatever it looks like; the default is for kfp tasks,
    /// and for everything with `--all`.
    pub fn decide(&self, task: &Task) -> Decision {
        self.outcome(task, self.matching(task))
    }

    /// The same decision, with its reasons.
    pub fn explain(&self, task: &Task) -> Explanation {
        let matching = self.matching(task);
        let before = &self.rules[..matching.unwrap_or(self.rules.len())];
        let miss = |(index, rule): (usize, &Rule)| {
            let Pattern { part, glob } = rule.miss(task)?;
            let found = part
                .of(task)
                .map_or_else(|| "it has none".into(), |value| format!("it is {}", quote::name(value)));
            Some(format!(
                "rule {} does not match: {part} has to be {}, and {found}",
                index + 1,
                quote::name(&glob.to_string())
            ))
        };
        let misses = before.iter().enumerate().filter_map(miss).collect();
        let by = match matching {
            Some(index) => match self.rules.len() - index - 1 {
                0 => format!("rule {} matches", index + 1),
                1 => format!("rule {} matches; the one after it is not looked at", index + 1),
                rest => format!("rule {} matches; the {rest} after it are not looked at", index + 1),
            },
            None if !task.kfp && !self.all => "no rule matches, and it is not a kfp task".into(),
            None => "no rule matches: the default".into(),
        };
        Explanation { misses, by, decision: self.outcome(task, matching) }
    }

    fn matching(&self, task: &Task) -> Option<usize> {
        self.rules.iter().position(|rule| rule.miss(task).is_none())
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
        // Where nothing can be chosen the wish is nobody's business. Where something can, another wish is no
        // reason to give what was not asked for.
        if let Some(wish) = task.wish.as_ref().filter(|_| !choose.is_empty()) {
            let own = identity.iter().chain(choose).find(|identity| identity.name == *wish);
            return own.map_or_else(
                || Decision::Pass(format!("it may not choose the identity {wish}")),
                |identity| Decision::Attach(identity.clone(), by),
            );
        }
        identity.as_ref().map_or(Decision::Pass(none), |identity| Decision::Attach(identity.clone(), by))
    }
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
        let account = identity.service_account.as_deref().unwrap_or("the own account");
        let _ = writeln!(text, "identity      {}", identity.name);
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
    use crate::workload::Part;

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
        Rule { patterns, choose: vec![], identity }
    }

    fn policy(rules: Vec<Rule>) -> Policy {
        Policy { rules, default: Some(identity("default")), choose: vec![], all: false }
    }

    fn named(policy: &Policy, task: &Task) -> String {
        match policy.decide(task) {
            Decision::Attach(identity, _) => identity.name.clone(),
            Decision::Pass(why) => why,
        }
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
    fn every_part_is_looked_at() {
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
    fn a_wish_counts_where_the_config_lets_it() {
        let wishing = |wish: &str| Task { wish: Some(wish.into()), ..task("etl", "load") };
        let mut policy = policy(vec![rule(&[(Part::Pipeline, "fixed")], Some(identity("fixed")))]);
        assert_eq!(named(&policy, &wishing("admin")), "default", "nothing can be chosen");
        policy.choose = vec![identity("reader")];
        assert_eq!(named(&policy, &wishing("reader")), "reader");
        assert_eq!(named(&policy, &wishing("default")), "default");
        assert_eq!(named(&policy, &wishing("admin")), "it may not choose the identity admin");
        assert_eq!(named(&policy, &task("etl", "load")), "default");
        let fixed = Task { pipeline: Some("fixed".into()), ..wishing("reader") };
        assert_eq!(named(&policy, &fixed), "fixed", "the rule does not let it choose");
        policy.rules[0].choose = vec![identity("writer")];
        let ruled = |wish: &str| Task { pipeline: Some("fixed".into()), ..wishing(wish) };
        assert_eq!(named(&policy, &ruled("writer")), "writer", "in the rule's own list");
        assert_eq!(named(&policy, &ruled("fixed")), "fixed");
        assert_eq!(
            named(&policy, &ruled("reader")),
            "it may not choose the identity reader",
            "the default's list is no rule's"
        );
    }

    #[test]
    fn explaining_is_deciding_with_reasons() {
        let policy = policy(vec![
            rule(&[(Part::Pipeline, "etl"), (Part::Function, "f")], None),
            rule(&[(Part::Component, "load")], Some(identity("loader"))),
            rule(&[(Part::Component, "*")], None),
        ]);
        assert_eq!(
            policy.explain(&task("etl", "load")).to_string(),
            "rule 1 does not match: function has to be f, and it has none\n\
             rule 2 matches; the one after it is not looked at\nidentity      loader\naccount       the own account\n\
             scopes        https://www.googleapis.com/auth/cloud-platform\naudiences     any\nlifetime      3600 s\n"
        );
        let boundary = crate::token::Boundary(vec![crate::token::BoundaryRule {
            bucket: "data".into(),
            permissions: vec!["inRole:roles/storage.objectViewer".into()],
            condition: Some(crate::token::Condition {
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
            "no rule matches: the default\nidentity      all\naccount       the own account\n\
             scopes        https://www.googleapis.com/auth/cloud-platform (strict: others are refused)\n\
             stands in     for a@b.example\n\
             boundary      data: inRole:roles/storage.objectViewer, if resource.name.startsWith('x')\n\
             audiences     any\nlifetime      3600 s\nrate          9 a minute\n\
             tokens        its own, shared with no other container\n\
             kill switch   its service accounts may be disabled by hand\n"
        );
        assert_eq!(
            policy.explain(&task("x", "y")).to_string(),
            "rule 1 does not match: pipeline has to be etl, and it is x\n\
             rule 2 does not match: component has to be load, and it is y\nrule 3 matches\nno identity: rule 3 says none\n"
        );
        let other = policy.explain(&Task { image: "i".into(), ..Task::default() });
        assert!(other.to_string().ends_with(
            "no rule matches, and it is not a kfp task\nno identity: not a kfp task; attach it with --all or a [[rule]]\n"
        ));
    }
}
