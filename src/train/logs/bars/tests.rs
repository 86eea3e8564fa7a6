use super::*;
use crate::train::logs::tests::{Kept, epoch, step};
use indicatif::{ProgressDrawTarget, TermLike};
use std::io;
use std::sync::{Arc, Mutex};

/// A terminal of 80 columns that keeps what is written to it.
#[derive(Debug)]
struct Screen(Arc<Mutex<String>>);

impl TermLike for Screen {
    fn width(&self) -> u16 {
        80
    }

    fn move_cursor_up(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_down(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_right(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_left(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.write_str(text)
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.0.lock().unwrap().push_str(text);
        Ok(())
    }

    fn clear_line(&self) -> io::Result<()> {
        self.write_str("<clear>")
    }

    fn flush(&self) -> io::Result<()> {
        self.write_str("\n")
    }
}

fn tell(mut hear: impl FnMut(&Event<'_>)) {
    hear(&Event::Phase { phase: 2, phases: 3, frozen_blocks: 4 });
    hear(&Event::Features { done: 1, total: 2 });
    hear(&Event::Features { done: 2, total: 2 });
    (1..=2).for_each(|number| hear(&step(number, 0.5)));
    hear(&Event::Epoch(&epoch(1, Some(0.5))));
    hear(&step(3, 0.25));
}

#[test]
fn a_terminal_shows_a_bar_and_lines() {
    let (screen, kept) = (Arc::default(), Kept::default());
    let bar = ProgressBar::new(1);
    bar.set_draw_target(ProgressDrawTarget::term_like(Box::new(Screen(Arc::clone(&screen)))));
    tell(drawn_on(bar, kept.clone()));
    let screen = screen.lock().unwrap().clone();
    let frames: Vec<&str> = screen.lines().collect();
    let shows = |words: &[&str]| frames.iter().any(|frame| words.iter().all(|word| frame.contains(word)));
    assert!(shows(&["features [", "1/2"]), "{screen}");
    assert!(shows(&["phase 2/3 epoch 1 [", " 2/9 0s left, ", " images/s, loss 0.500"]), "{screen}");
    assert!(shows(&["phase 2/3 epoch 1 [", " 3/9 0s left, ", " images/s, loss 0.250, top1"]), "{screen}");
    // The line is printed where the bar was.
    let lines = format!("features of 2 samples computed\n{}\n", epoch(1, Some(0.5)));
    assert_eq!(kept.text(), lines);
}

#[test]
fn without_a_terminal_there_are_only_the_lines() {
    let (bars, lines) = (Kept::default(), Kept::default());
    let bar = ProgressBar::new(1);
    bar.set_draw_target(ProgressDrawTarget::hidden());
    tell(drawn_on(bar, bars.clone()));
    tell(progress_lines(lines.clone()));
    assert_eq!(bars.text(), lines.text());
}

#[test]
fn rates_and_times_are_means_of_the_epoch() {
    let so_far = SoFar { steps: 4, samples: 32, ..SoFar::new() };
    let text = so_far.text(Duration::from_secs(2), 240, 0.1234, Some(0.9444));
    assert_eq!(text, "2m left, 16 images/s, loss 0.123, top1 0.944");
}
