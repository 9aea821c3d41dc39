//! What a profile of callgrind says of the libraries of a configuration.

use std::collections::HashMap;

/// Through these the server calls the hooks that see each statement.
const HOOKED: [&str; 9] = [
    "parse_analyze_fixedparams",
    "parse_analyze_varparams",
    "parse_analyze_withcb",
    "planner",
    "ExecutorStart",
    "ExecutorRun",
    "ExecutorFinish",
    "ExecutorEnd",
    "ProcessUtility",
];

/// Reads what the client sends. Whether that is there already or waited for, which is some 220 instructions more, depends on who
/// gets a processor first.
const READS: &str = "secure_read";

/// Instructions of one process, or of one transaction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// But for those of [`READS`].
    pub all: f64,
    /// In the code of the libraries themselves.
    pub own: f64,
    /// From entering a hook of statements to leaving it, without what the hook wraps: the server's `standard_` functions.
    pub hooks: f64,
    /// From entering a library in another way to leaving it: at the end of a transaction, for one.
    pub other: f64,
}

impl Cost {
    /// Reads a profile: `ob=` and `fn=` say whose the lines are that follow; after `calls=` comes one with the cost of what was
    /// called, which `cob=` and `cfn=` before it name.
    pub fn of(profile: &str, libraries: &[&str]) -> Self {
        let is_ours = |object: &str| {
            let file = object.rsplit('/').next().unwrap_or(object);
            file.strip_suffix(".so")
                .is_some_and(|stem| libraries.contains(&stem))
        };
        let (mut objects, mut functions) = (Names::default(), Names::default());
        let mut cost = Cost::default();
        let (mut ours, mut caller) = (false, "");
        let (mut callee_ours, mut callee, mut call) = (None, "", false);
        for line in profile.lines() {
            if let Some((key, value)) = line.split_once('=') {
                match key {
                    "ob" => ours = is_ours(objects.whole(value)),
                    "fn" => caller = function(functions.whole(value)),
                    "cob" => callee_ours = Some(is_ours(objects.whole(value))),
                    "cfn" => callee = function(functions.whole(value)),
                    "calls" => call = true,
                    _ => {}
                }
                continue;
            }
            let Some((position, instructions)) = line.split_once(' ') else {
                continue;
            };
            if position == "totals:" {
                cost.all += number(instructions);
            }
            // The lines with words are at the beginning and the end.
            if position.parse::<u32>().is_err() {
                continue;
            }
            let instructions = number(instructions);
            if !call {
                if ours {
                    cost.own += instructions;
                }
                continue;
            }
            if callee == READS {
                cost.all -= instructions;
            }
            // Without a `cob=` the callee is of the caller's object.
            match (ours, callee_ours.unwrap_or(ours)) {
                (false, true) if HOOKED.contains(&caller) => cost.hooks += instructions,
                (false, true) => cost.other += instructions,
                (true, false) if callee.starts_with("standard_") => cost.hooks -= instructions,
                _ => {}
            }
            (callee_ours, callee, call) = (None, "", false);
        }
        cost
    }

    /// Of each of the transactions that `self` has and `shorter` has not.
    pub fn beyond(self, shorter: Self, transactions: f64) -> Self {
        let each = |long: f64, short: f64| (long - short) / transactions;
        Self {
            all: each(self.all, shorter.all),
            own: each(self.own, shorter.own),
            hooks: each(self.hooks, shorter.hooks),
            other: each(self.other, shorter.other),
        }
    }

    /// The median of each figure.
    pub fn median(costs: &[Self]) -> Self {
        let median = |figure: fn(&Self) -> f64| {
            let mut figures: Vec<f64> = costs.iter().map(figure).collect();
            figures.sort_by(f64::total_cmp);
            // Of an even number the mean of the two in the middle.
            f64::midpoint(figures[figures.len() / 2], figures[(figures.len() - 1) / 2])
        };
        Self {
            all: median(|cost| cost.all),
            own: median(|cost| cost.own),
            hooks: median(|cost| cost.hooks),
            other: median(|cost| cost.other),
        }
    }
}

fn number(text: &str) -> f64 {
    text.trim()
        .parse()
        .unwrap_or_else(|_| panic!("callgrind: \"{text}\" is no cost"))
}

/// Without the mark that callgrind gives a function that calls itself.
fn function(name: &str) -> &str {
    name.split('\'').next().unwrap_or(name)
}

/// Names that a profile writes out once, as `(7) name`, and afterwards calls `(7)`.
#[derive(Default)]
struct Names<'a>(HashMap<&'a str, &'a str>);

impl<'a> Names<'a> {
    fn whole(&mut self, text: &'a str) -> &'a str {
        match text.split_once(' ') {
            Some((number, name)) => {
                self.0.insert(number, name);
                name
            }
            None => self.0.get(text).copied().unwrap_or(text),
        }
    }
}
