//! Which container gets which identity. The rules are the operator's and are read at start.

use std::sync::Arc;

use wildmatch::WildMatch;

use crate::workload::{Identity, Task};

/// One `[[rule]]`: all given patterns must match; the first rule that matches decides.
#[derive(Clone, Debug)]
pub struct Rule {
    pub pipeline: Option<WildMatch>,
    pub component: Option<WildMatch>,
    pub image: Option<WildMatch>,
    /// `None` is the word `none` of the config: no identity, and the container passes untouched.
    pub identity: Option<Arc<Identity>>,
}

impl Rule {
    fn matches(&self, task: &Task) -> bool {
        let given = |pattern: &Option<WildMatch>, value: Option<&str>| match pattern {
            None => true,
            Some(pattern) => value.is_some_and(|value| pattern.matches(value)),
        };
        given(&self.pipeline, task.pipeline.as_deref())
            && given(&self.component, task.component.as_deref())
            && given(&self.image, Some(&task.image))
    }
}

/// What is to happen with a container.
#[derive(Clone, Debug)]
pub enum Decision {
    /// Attach it, as this identity. It may still be passed over for what it can do to its neighbours.
    Attach(Arc<Identity>),
    /// Leave it alone; the text says why, for the one line that is printed.
    Pass(String),
}

/// The operator's rules and what stands behind them.
#[derive(Clone, Debug)]
pub struct Policy {
    pub rules: Vec<Rule>,
    /// For containers that no rule names.
    pub default: Option<Arc<Identity>>,
    /// Containers that do not look like kfp tasks get the default as well (`--all`).
    pub all: bool,
}

impl Policy {
    /// A rule that names a container decides, whatever it looks like; the default is for kfp tasks,
    /// and for everything with `--all`.
    pub fn decide(&self, task: &Task) -> Decision {
        if let Some((index, rule)) = self.rules.iter().enumerate().find(|(_, rule)| rule.matches(task)) {
            return match &rule.identity {
                Some(identity) => Decision::Attach(identity.clone()),
                None => Decision::Pass(format!("rule {} says none", index + 1)),
            };
        }
        match &self.default {
            _ if !task.kfp && !self.all => {
                Decision::Pass("not a kfp task; attach it with --all or a [[rule]]".into())
            }
            Some(identity) => Decision::Attach(identity.clone()),
            None => Decision::Pass("the default identity is none".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::token::Scopes;

    fn identity(name: &str) -> Arc<Identity> {
        Arc::new(Identity {
            name: name.into(),
            service_account: None,
            scopes: Scopes::default(),
            audiences: vec![],
            lifetime: Duration::from_secs(3600),
            isolate: false,
            strict: false,
        })
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

    #[test]
    fn first_match_wins_and_all_given_patterns_must_match() {
        let rule = |pipeline: Option<&str>, component: Option<&str>, identity| Rule {
            pipeline: pipeline.map(WildMatch::new),
            component: component.map(WildMatch::new),
            image: None,
            identity,
        };
        let policy = Policy {
            rules: vec![
                rule(Some("etl-*"), Some("load*"), Some(identity("loader"))),
                rule(Some("etl-*"), Some("secretive"), None),
                rule(None, Some("load*"), Some(identity("other"))),
            ],
            default: Some(identity("default")),
            all: false,
        };
        let named = |task: &Task| match policy.decide(task) {
            Decision::Attach(identity) => identity.name.clone(),
            Decision::Pass(why) => why,
        };
        assert_eq!(named(&task("etl-1", "load-2")), "loader");
        assert_eq!(named(&task("train", "load")), "other");
        assert_eq!(named(&task("etl-1", "transform")), "default");
        assert_eq!(named(&task("etl-1", "secretive")), "rule 2 says none");
        assert!(named(&task("", "")).starts_with("not a kfp task"));
    }
}
