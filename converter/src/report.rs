//! What users see: logs, progress of long work, failures.
use crate::cli::Common;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// Sends logs to standard error, as `--log` says.
pub fn start_log(common: &Common) {
    let filter = EnvFilter::try_new(&common.log).unwrap_or_else(|_| EnvFilter::new("warn"));
    let colours = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr);
    log.without_time().init();
}

/// Prints `error` and its causes, once each.
pub fn failure(error: &anyhow::Error) -> ExitCode {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        // Library errors often quote their own source; don't say it twice.
        if !text.contains(&cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
    }
    eprintln!("clipper: {text}");
    ExitCode::FAILURE
}

/// `bytes` for people: binary units, three digits.
pub fn human(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// `part` of `whole` in percent.
pub fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

/// Progress of several pieces of work side by side: bars on a terminal, plain lines elsewhere.
#[derive(Clone)]
pub struct Progress {
    bars: Option<MultiProgress>,
    quiet: bool,
}

impl Progress {
    /// Progress on standard error.
    pub fn new(common: &Common) -> Self {
        let bars = (!common.quiet && std::io::stderr().is_terminal())
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
        Self { bars, quiet: common.quiet }
    }

    /// Says `line`, above the bars if there are any.
    pub fn say(&self, line: &str) {
        match &self.bars {
            _ if self.quiet => {}
            Some(bars) => bars.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    /// Says `text` as a warning.
    pub fn warn(&self, text: &str) {
        self.say(&format!("warning: {text}"));
    }

    /// Starts a piece of work of `bytes` bytes.
    pub fn task(&self, name: &str, bytes: u64) -> Task {
        let bar = match &self.bars {
            Some(bars) => bars.add(ProgressBar::new(bytes)),
            None => ProgressBar::hidden(),
        };
        if let Ok(style) = ProgressStyle::with_template(
            "{prefix:16} [{bar:30}] {binary_bytes:>10} / {binary_total_bytes:<10} {binary_bytes_per_sec:>12} {msg}",
        ) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(name.to_owned());
        if self.bars.is_some() {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Task { bar, progress: self.clone() }
    }
}

/// A piece of work that is under way.
pub struct Task {
    bar: ProgressBar,
    progress: Progress,
}

impl Task {
    /// `bytes` more are done.
    pub fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// `bytes` in all are done; may be less than before.
    pub fn reached(&self, bytes: u64) {
        self.bar.set_position(bytes);
    }

    /// It is done; `line` says what came of it.
    pub fn done(&self, line: &str) {
        self.bar.finish_and_clear();
        self.progress.say(line);
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
