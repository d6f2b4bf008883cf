//! Numbers: medians, intervals, and the table.

use crate::page::{HEAD, Row};

/// Sorts on the way.
pub(crate) fn percentile(values: &mut [f64], percent: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index of a slice")]
    let at = (last as f64 * percent / 100.0).round() as usize;
    values.get(at).copied().unwrap_or(f64::NAN)
}

pub(crate) fn median(values: &[f64]) -> f64 {
    percentile(&mut values.to_vec(), 50.0)
}

/// A figure and the 95 % interval in which it lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    pub(crate) value: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// `of` the pairs, with an interval by bootstrap: pairs are drawn again, 2 000 times.
pub(crate) fn of_pairs(pairs: &[(f64, f64)], of: impl Fn(&[(f64, f64)]) -> f64) -> Figure {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed % below.max(1) as u64).unwrap_or_default()
    };
    let mut drawn: Vec<f64> =
        (0..2000).map(|_| of(&pairs.iter().map(|_| pairs[draw(pairs.len())]).collect::<Vec<_>>())).collect();
    let (low, high) = (percentile(&mut drawn, 2.5), percentile(&mut drawn, 97.5));
    Figure { value: of(pairs), low, high }
}

/// The median of the first of each pair over that of the second.
pub(crate) fn ratio(pairs: &[(f64, f64)]) -> f64 {
    let (first, second): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
    median(&first) / median(&second)
}

/// The median of what the first of a pair has more than the second.
pub(crate) fn difference(pairs: &[(f64, f64)]) -> f64 {
    median(&pairs.iter().map(|(first, second)| first - second).collect::<Vec<_>>())
}

/// What a figure should be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    AtLeast(f64),
    AtMost(f64),
    /// Stated, not promised.
    Stated,
}

/// Rows are printed as they come, so that a long run shows that it moves, and once more as Markdown.
#[derive(Debug)]
pub(crate) struct Table(pub(crate) Vec<Row>);

impl Table {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    /// `shown` is the figure as a person reads it, `value` what the target is compared with.
    pub(crate) fn row(
        &mut self,
        group: &'static str,
        what: impl Into<String>,
        (value, shown): (f64, String),
        target: Target,
        unit: &str,
    ) {
        let (target, met) = match target {
            Target::AtLeast(least) => (format!("≥ {least}{unit}"), Some(value >= least)),
            Target::AtMost(most) => (format!("≤ {most}{unit}"), Some(value <= most)),
            Target::Stated => ("—".into(), None),
        };
        let verdict = met.map_or("stated", |met| if met { "met" } else { "MISSED" });
        let row = Row { group, what: what.into(), figure: shown, target, verdict };
        eprintln!("{:<7} {}: {} (target {})", row.verdict, row.what, row.figure, row.target);
        self.0.push(row);
    }

    pub(crate) fn print(&self) {
        let rows: Vec<String> = self.0.iter().map(|row| row.line() + "\n").collect();
        print!("{HEAD}{}", rows.concat());
    }
}
