//! Contenders in turn, and what is printed of them.

use std::time::Duration;

/// One way to do the job. `run` does it once and returns a figure a column.
pub struct Contender<'a> {
    pub name: &'static str,
    pub run: Box<dyn FnMut() -> Vec<f64> + 'a>,
}

impl<'a> Contender<'a> {
    pub fn new(name: &'static str, run: impl FnMut() -> Vec<f64> + 'a) -> Self {
        Self {
            name,
            run: Box::new(run),
        }
    }
}

/// The median of each contender and column, in the order given to [`measure`].
pub struct Medians(Vec<Vec<f64>>);

impl Medians {
    pub fn of(&self, contender: usize, column: usize) -> f64 {
        self.0[contender][column]
    }
}

pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Lets every contender run once a round, each round beginning with another one, and prints the median, the smallest and the
/// largest figure of each column, and the ratio of the medians to the first contender's.
pub fn measure(
    title: &str,
    columns: &[&str],
    rounds: usize,
    mut contenders: Vec<Contender>,
) -> Medians {
    println!("\n{title} ({rounds} rounds)");
    let mut figures = vec![vec![Vec::new(); columns.len()]; contenders.len()];
    let count = contenders.len();
    for round in 0..rounds {
        for turn in 0..count {
            let who = (round + turn) % count;
            let measured = (contenders[who].run)();
            assert_eq!(measured.len(), columns.len(), "{}", contenders[who].name);
            for (column, figure) in measured.into_iter().enumerate() {
                figures[who][column].push(figure);
            }
        }
    }
    let medians: Vec<Vec<f64>> = figures
        .iter()
        .map(|columns| columns.iter().map(|figures| median(figures)).collect())
        .collect();
    for (index, column) in columns.iter().enumerate() {
        println!(
            "  {column:<44} {:>10} {:>10} {:>10} {:>8}",
            "median", "least", "most", "ratio"
        );
        for (who, contender) in contenders.iter().enumerate() {
            let all = &figures[who][index];
            println!(
                "    {:<42} {:>10.2} {:>10.2} {:>10.2} {:>8.2}",
                contender.name,
                medians[who][index],
                all.iter().copied().fold(f64::INFINITY, f64::min),
                all.iter().copied().fold(f64::NEG_INFINITY, f64::max),
                medians[who][index] / medians[0][index],
            );
        }
    }
    Medians(medians)
}

/// Says whether a goal was met; a benchmark never fails for it.
pub fn goal(what: &str, met: bool) {
    println!("  goal: {what}: {}", if met { "met" } else { "NOT MET" });
}

fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        (sorted[middle - 1] + sorted[middle]) / 2.0
    }
}
