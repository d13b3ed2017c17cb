//! How soon a daemon that died is started again.
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Deaths that are looked back at.
const WINDOW: Duration = Duration::from_secs(60);
/// Deaths within that which are followed by a start at once.
const AT_ONCE: usize = 4;
/// The first pause, which doubles with each further death, and the longest.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// More deaths than these within the window, and it is of no use.
const DEATHS_MAX: usize = 16;

/// The deaths of daemons.
#[derive(Debug, Default)]
pub struct Pace {
    deaths: VecDeque<Instant>,
}

/// What is to be done after a death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another start after this pause.
    Start(Duration),
    /// No other start: this many daemons died within a minute.
    GiveUp(usize),
}

impl Pace {
    /// A daemon died at `now`.
    pub fn died(&mut self, now: Instant) -> Next {
        self.deaths.push_back(now);
        while self.deaths.front().is_some_and(|death| now.duration_since(*death) > WINDOW) {
            self.deaths.pop_front();
        }
        match self.deaths.len() {
            deaths if deaths > DEATHS_MAX => Next::GiveUp(deaths),
            deaths if deaths <= AT_ONCE => Next::Start(Duration::ZERO),
            deaths => {
                let doublings = (deaths - AT_ONCE - 1).min(16) as u32;
                Next::Start((PAUSE * (1 << doublings)).min(PAUSE_MAX))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_deaths_cost_no_time_more_of_them_some_and_too_many_end_it() {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        let (mut pauses, start) = (Vec::new(), now);
        let deaths = loop {
            match pace.died(now) {
                Next::Start(pause) => {
                    pauses.push(pause.as_millis());
                    now += pause + Duration::from_millis(50);
                }
                Next::GiveUp(deaths) => break deaths,
            }
        };
        assert_eq!(pauses[..8], [0, 0, 0, 0, 100, 200, 400, 800]);
        assert_eq!(pauses[15], 5000);
        assert_eq!(deaths, 17);
        assert!(now - start < WINDOW);
    }

    #[test]
    fn deaths_are_forgotten() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        for number in 0..1000u32 {
            let next = pace.died(start + Duration::from_secs(15) * number);
            assert!(matches!(next, Next::Start(pause) if pause <= Duration::from_millis(100)), "{number}: {next:?}");
        }
    }
}
