//! Medians over rounds, and ratios taken round by round.

use serde::Serialize;

/// Median and range of a figure over the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// `None` if there are no values.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let upper = sorted.len() / 2;
        let lower = (sorted.len() - 1) / 2;
        Some(Self {
            median: f64::midpoint(sorted[lower], sorted[upper]),
            min,
            max,
        })
    }

    /// The ratio in each round; what slows a whole round down cancels out.
    pub(crate) fn of_ratios(values: &[f64], baseline: &[f64]) -> Option<Self> {
        Self::of(
            values
                .iter()
                .zip(baseline)
                .map(|(value, base)| value / base),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::Spread;

    #[test]
    fn the_median_of_an_even_count_lies_between_the_middle_two() {
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0]);
        assert_eq!(
            spread,
            Some(Spread {
                median: 2.5,
                min: 1.0,
                max: 4.0
            })
        );
    }

    #[test]
    fn a_slow_round_does_not_move_the_ratio() {
        let spread = Spread::of_ratios(&[2.0, 20.0, 2.0], &[1.0, 10.0, 1.0]);
        assert_eq!(
            spread,
            Some(Spread {
                median: 2.0,
                min: 2.0,
                max: 2.0
            })
        );
    }

    #[test]
    fn nothing_has_no_median() {
        assert_eq!(Spread::of([]), None);
    }
}
