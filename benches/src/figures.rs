//! Figures of several runs of the same thing.

use serde::Serialize;

/// One quantity, measured several times.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures(pub Vec<f64>);

impl Figures {
    /// The middle value, or the mean of the two.
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => f64::NAN,
            odd if odd % 2 == 1 => sorted[odd / 2],
            even => (sorted[even / 2 - 1] + sorted[even / 2]) / 2.0,
        }
    }

    /// The value below which `percent` of all are.
    pub fn percentile(&self, percent: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() as f64 * percent / 100.0).ceil() as usize;
        sorted.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
    }

    /// The geometric mean.
    pub fn geometric_mean(&self) -> f64 {
        (self.0.iter().map(|value| value.ln()).sum::<f64>() / self.0.len() as f64).exp()
    }

    /// The smallest value.
    pub fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// The largest value.
    pub fn max(&self) -> f64 {
        self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    /// Median and range: `1.23 (1.20–1.31)`.
    pub fn text(&self, decimals: usize) -> String {
        format!("{:.decimals$} ({:.decimals$}–{:.decimals$})", self.median(), self.min(), self.max())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(Figures(vec![3.0, 1.0, 2.0]).median(), 2.0);
        assert_eq!(Figures(vec![4.0, 1.0, 2.0, 3.0]).text(1), "2.5 (1.0–4.0)");
    }

    #[test]
    fn percentiles_and_means() {
        let hundred = Figures((1..=100).rev().map(f64::from).collect());
        assert_eq!(
            (hundred.percentile(50.0), hundred.percentile(99.0), hundred.percentile(100.0)),
            (50.0, 99.0, 100.0)
        );
        assert_eq!(Figures(vec![7.0]).percentile(1.0), 7.0);
        assert!((Figures(vec![1.0, 4.0]).geometric_mean() - 2.0).abs() < 1e-9);
    }
}
