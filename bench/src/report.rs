//! What a benchmark says: rows of a table, or JSON.

use serde::Serialize;

/// A bound that a row's figure is held against.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "bound")]
pub enum Target {
    /// Ours divided by the reference is at most this.
    RatioAtMost(f64),
    /// Ours divided by the reference is at least this.
    RatioAtLeast(f64),
    /// Ours is at most this.
    AtMost(f64),
    /// There is none: the row is for information.
    None,
}

/// One measurement beside its reference.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The benchmark it belongs to.
    pub benchmark: &'static str,
    /// What was measured.
    pub what: String,
    /// In which unit both figures are.
    pub unit: &'static str,
    /// Our figure.
    pub ours: f64,
    /// What it is measured against; none where there is only a bound.
    pub reference: Option<f64>,
    /// The bound.
    pub target: Target,
}

/// What a benchmark that takes minutes gives each row to, as soon as it is there.
pub type Sink<'a> = &'a mut dyn FnMut(Row);

impl Row {
    /// Ours divided by the reference.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        self.reference.map(|reference| self.ours / reference)
    }

    /// Whether the target is met; none if there is no target. A ratio without a reference is a miss.
    #[must_use]
    pub fn met(&self) -> Option<bool> {
        let ratio = self.ratio();
        match self.target {
            Target::RatioAtMost(bound) => Some(ratio.is_some_and(|ratio| ratio <= bound)),
            Target::RatioAtLeast(bound) => Some(ratio.is_some_and(|ratio| ratio >= bound)),
            Target::AtMost(bound) => Some(self.ours <= bound),
            Target::None => None,
        }
    }

    /// The row as a line of the table.
    #[must_use]
    pub fn line(&self) -> String {
        let optional = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), figure);
        let ratio = self
            .ratio()
            .map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        let target = match self.target {
            Target::RatioAtMost(bound) => format!("<= {bound}x"),
            Target::RatioAtLeast(bound) => format!(">= {bound}x"),
            Target::AtMost(bound) => format!("<= {bound}"),
            Target::None => "-".to_owned(),
        };
        let verdict = match self.met() {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "",
        };
        format!(
            "{:57} {:>6} {:>11} {:>11} {ratio:>6} {target:>9} {verdict}",
            self.what,
            self.unit,
            figure(self.ours),
            optional(self.reference),
        )
    }
}

/// The table's heading.
#[must_use]
pub fn heading() -> String {
    format!(
        "{:57} {:>6} {:>11} {:>11} {:>6} {:>9}",
        "what", "unit", "ours", "reference", "ratio", "target"
    )
}

fn figure(value: f64) -> String {
    if value.abs() >= 1000.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ours: f64, reference: Option<f64>, target: Target) -> Row {
        Row {
            benchmark: "test",
            what: "something".to_owned(),
            unit: "ns",
            ours,
            reference,
            target,
        }
    }

    #[test]
    fn targets_are_bounds_with_their_edges() {
        let met = |ours, reference, target| row(ours, reference, target).met();
        assert_eq!(met(2.0, Some(1.0), Target::RatioAtMost(2.0)), Some(true));
        assert_eq!(met(2.1, Some(1.0), Target::RatioAtMost(2.0)), Some(false));
        assert_eq!(met(0.9, Some(1.0), Target::RatioAtLeast(0.9)), Some(true));
        assert_eq!(met(0.8, Some(1.0), Target::RatioAtLeast(0.9)), Some(false));
        assert_eq!(met(1.0, None, Target::RatioAtLeast(0.9)), Some(false));
        assert_eq!(met(0.0, None, Target::AtMost(0.0)), Some(true));
        assert_eq!(met(0.5, None, Target::AtMost(0.0)), Some(false));
        assert_eq!(met(1.0, Some(1.0), Target::None), None);
    }

    #[test]
    fn a_missed_target_shows_in_its_line() {
        assert!(
            row(3.0, Some(1.0), Target::RatioAtMost(2.0))
                .line()
                .ends_with("MISSED")
        );
        assert!(
            row(1.0, Some(1.0), Target::RatioAtMost(2.0))
                .line()
                .ends_with(" met")
        );
    }
}
