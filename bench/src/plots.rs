//! Bars of the main figures, as SVG.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::compare::{Entry, pick_up};
use crate::figures::{Summary, significant};

/// File, title, figure, divisor.
const PLOTS: [(&str, &str, &str, f64); 4] = [
    ("publish", "Published by 64 callers, thousand tasks per second", "publish_calls", 1000.0),
    ("drain", "Drained, thousand tasks per second", "drain", 1000.0),
    ("drain-cpu", "CPU time of client and servers per executed task, µs", "drain_cpu_all", 1.0),
    ("memory", "Peak memory of the client, MiB", "memory_mib", 1.0),
];

const WIDTH: u32 = 860;
const BAR: i32 = 22;
const GAP: i32 = 12;
/// Above the bars, and left of them.
const TOP: i32 = 50;
const LEFT: i32 = 300;
const RIGHT: i32 = 120;

const OURS: RGBColor = RGBColor(0x1f, 0x6f, 0xb4);
const OTHERS: RGBColor = RGBColor(0x9a, 0xa3, 0xad);

/// Draws all plots into a folder.
pub(crate) fn draw(entries: &[Entry], folder: &Path) -> Result<()> {
    let latency = pick_up(200, "p50");
    let plots = PLOTS.into_iter().chain([(
        "pick-up",
        "Pick-up at 200 tasks per second, p50, ms",
        latency.as_str(),
        1.0,
    )]);
    for (name, title, figure, unit) in plots {
        let bars: Vec<_> = entries
            .iter()
            .filter_map(|e| {
                let summary = e.figures.summary(figure)?.divided_by(unit);
                Some(Bar { title: e.side.title, ours: e.side.is_ours(), summary })
            })
            .collect();
        let file = folder.join(format!("{name}.svg"));
        let height = TOP + (BAR + GAP) * bars.len() as i32 + GAP;
        let area = SVGBackend::new(&file, (WIDTH, height as u32)).into_drawing_area();
        bar_chart(&area, title, &bars).map_err(|error| anyhow!("{name}.svg: {error}"))?;
    }
    Ok(())
}

struct Bar<'a> {
    title: &'a str,
    ours: bool,
    summary: Summary,
}

type Drawn<'a> = std::result::Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

/// One bar per side, as long as its median, with a line over the range.
fn bar_chart<'a>(
    area: &DrawingArea<SVGBackend<'a>, plotters::coord::Shift>,
    title: &str,
    bars: &[Bar],
) -> Drawn<'a> {
    let text = |size: i32| ("sans-serif", size).into_font();
    let middle = |h| Pos::new(h, VPos::Center);
    area.fill(&WHITE)?;
    area.draw(&Text::new(title.to_owned(), (16, 16), text(18)))?;
    let most = bars.iter().map(|bar| bar.summary.most).fold(f64::MIN_POSITIVE, f64::max);
    let x = |figure: f64| LEFT + (figure / most * f64::from(WIDTH as i32 - LEFT - RIGHT)) as i32;
    for (n, bar) in (0..).zip(bars) {
        let (y, Summary { median, least, most }) = (TOP + n * (BAR + GAP), bar.summary);
        let colour = if bar.ours { OURS } else { OTHERS };
        let centre = y + BAR / 2;
        let label = text(13).into_text_style(area).pos(middle(HPos::Right));
        area.draw(&Text::new(bar.title.to_owned(), (LEFT - 8, centre), label))?;
        area.draw(&Rectangle::new([(LEFT, y), (x(median), y + BAR)], colour.filled()))?;
        area.draw(&PathElement::new([(x(least), centre), (x(most), centre)], BLACK))?;
        let value = text(13).into_text_style(area).pos(middle(HPos::Left));
        area.draw(&Text::new(significant(median), (x(most) + 8, centre), value))?;
    }
    area.present()
}

/// How something grows.
pub(crate) struct Line {
    pub(crate) title: String,
    pub(crate) points: Vec<(f64, f64)>,
}

pub(crate) fn draw_lines(file: &Path, title: &str, lines: &[Line]) -> Result<()> {
    let area = SVGBackend::new(file, (WIDTH, 420)).into_drawing_area();
    line_chart(&area, title, lines).map_err(|error| anyhow!("{}: {error}", file.display()))
}

/// Both axes begin at 0.
fn line_chart<'a>(
    area: &DrawingArea<SVGBackend<'a>, plotters::coord::Shift>,
    title: &str,
    lines: &[Line],
) -> Drawn<'a> {
    area.fill(&WHITE)?;
    let points = || lines.iter().flat_map(|line| &line.points);
    let most = |of: fn(&(f64, f64)) -> f64| points().map(of).fold(1.0, f64::max) * 1.05;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(30)
        .y_label_area_size(50)
        .build_cartesian_2d(0.0..most(|point| point.0), 0.0..most(|point| point.1))?;
    chart.configure_mesh().light_line_style(TRANSPARENT).draw()?;
    for (line, colour) in lines.iter().zip([OURS, OTHERS].into_iter().cycle()) {
        let drawn = LineSeries::new(line.points.iter().copied(), colour.stroke_width(2)).point_size(3);
        let legend = move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2));
        chart.draw_series(drawn)?.label(&line.title).legend(legend);
    }
    chart.configure_series_labels().position(SeriesLabelPosition::LowerRight).border_style(OTHERS).draw()?;
    area.present()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_has_every_side_and_its_figure() {
        let bar =
            |title, median| Bar { title, ours: false, summary: Summary { median, least: 1.0, most: 9.0 } };
        let mut svg = String::new();
        let area = SVGBackend::with_string(&mut svg, (WIDTH, 200)).into_drawing_area();
        bar_chart(&area, "Drained", &[bar("asynq", 7.25), bar("BullMQ", 3.5)]).unwrap();
        drop(area);
        for text in ["Drained", "asynq", "7.25", "BullMQ", "3.50"] {
            assert!(svg.contains(text), "{text} is not in {svg}");
        }
    }

    #[test]
    fn lines_have_their_titles() {
        let line = |title: &str| Line { title: title.to_owned(), points: vec![(1.0, 5.0), (8.0, 40.0)] };
        let mut svg = String::new();
        let area = SVGBackend::with_string(&mut svg, (WIDTH, 420)).into_drawing_area();
        line_chart(&area, "Drained", &[line("rdkafka,redis"), line("rskafka,redis")]).unwrap();
        drop(area);
        assert!(svg.contains("Drained") && svg.contains("rskafka,redis"), "{svg}");
    }
}
