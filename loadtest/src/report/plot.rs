//! One plot: the planes' bars of one scenario and metric, a group of bars per path, spread as error bars.
//!
//! Bars begin at zero on a linear axis, so lengths may be compared. The SVG takes the page's text colour (`currentColor`), so it
//! reads on light and dark ground; bars have mid tones that stand out from both.

use anyhow::{Result, anyhow};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::report::{Line, figure, number};
use crate::result::Row;

const WIDTH: u32 = 620;
const LABELS: u32 = 190;
const BAR: u32 = 17;
const GAP: u32 = 12;
const AXIS: u32 = 46;
/// Written by plotters as text colour, replaced by `currentColor`.
const INK: RGBColor = RGBColor(1, 1, 1);
const GRID: RGBColor = RGBColor(128, 128, 128);

/// The colour of a plane, also for the legend.
pub(super) fn colour(plane: &str) -> RGBColor {
    match plane {
        "none" => RGBColor(140, 140, 140),
        "mesh" => RGBColor(46, 125, 209),
        "envoy" => RGBColor(217, 119, 6),
        name if name.starts_with("mesh") => RGBColor(99, 179, 237),
        _ => RGBColor(147, 83, 200),
    }
}

/// An `<svg>` for all paths of one scenario and metric.
pub(super) fn svg(lines: &[&Line<'_>]) -> Result<String> {
    let bars: u32 = lines.iter().map(|line| BAR * line.rows.len() as u32 + GAP).sum();
    let height = bars + GAP + AXIS;
    let most = lines.iter().flat_map(|line| &line.rows).map(|row| row.max).fold(0.0, f64::max);
    // Room on the right for the figure behind the longest bar.
    let end = if most > 0.0 { most * 1.55 } else { 1.0 };
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .set_label_area_size(LabelAreaPosition::Left, LABELS)
            .set_label_area_size(LabelAreaPosition::Bottom, AXIS)
            .build_cartesian_2d(0.0..end, 0.0..f64::from(bars + GAP))
            .map_err(wrong)?;
        let unit = lines.first().map_or("", |line| line.unit);
        chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .x_labels(6)
            .x_label_formatter(&|value| number(*value))
            .x_desc(shown_unit(unit))
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID.mix(0.35))
            .axis_style(GRID)
            .label_style(("sans-serif", 12).into_font().color(&INK))
            .draw()
            .map_err(wrong)?;
        // Downwards from the top, in the order of the table.
        let mut top = f64::from(bars);
        for line in lines {
            let group = f64::from(BAR * line.rows.len() as u32);
            label(&area, &chart, line.path, top - group / 2.0)?;
            for (index, row) in line.rows.iter().enumerate() {
                bar(&mut chart, row, top - f64::from(BAR) * index as f64, end)?;
            }
            top -= group + f64::from(GAP);
        }
        area.present().map_err(wrong)?;
    }
    Ok(svg
        .replace("#010101", "currentColor")
        // The page scales it; a fixed size would not fit a narrow window.
        .replacen(&format!("width=\"{WIDTH}\" height=\"{height}\""), "role=\"img\"", 1))
}

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

fn bar(chart: &mut Chart<'_, '_>, row: &Row, top: f64, end: f64) -> Result<()> {
    let (low, middle) = (top - f64::from(BAR) + 3.0, top - f64::from(BAR - 3) / 2.0);
    let fill = colour(&row.plane).filled();
    chart.draw_series([Rectangle::new([(0.0, low), (row.median, top)], fill)]).map_err(wrong)?;
    if row.runs > 1 {
        let tick = |at: f64| PathElement::new(vec![(at, low + 3.0), (at, top - 3.0)], INK.stroke_width(1));
        let reach = PathElement::new(vec![(row.min, middle), (row.max, middle)], INK.stroke_width(1));
        chart.draw_series([tick(row.min), tick(row.max), reach]).map_err(wrong)?;
    }
    let style = ("sans-serif", 11).into_font().color(&INK).pos(Pos::new(HPos::Left, VPos::Center));
    let at = (row.max.max(row.median) + end * 0.008, middle);
    chart.draw_series([Text::new(format!("{} {}", row.plane, figure(row)), at, style)]).map_err(wrong)?;
    Ok(())
}

fn label(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    chart: &Chart<'_, '_>,
    text: &str,
    middle: f64,
) -> Result<()> {
    let (_, y) = chart.backend_coord(&(0.0, middle));
    let style = ("sans-serif", 12).into_font().color(&INK).pos(Pos::new(HPos::Right, VPos::Center));
    area.draw(&Text::new(text.to_owned(), (LABELS as i32 - 8, y), style)).map_err(wrong)
}

/// As a person writes it.
fn shown_unit(unit: &str) -> String {
    match unit {
        "us" => "µs".to_owned(),
        "us/op" => "µs of CPU per operation".to_owned(),
        "s/GB" => "s of CPU per GB".to_owned(),
        "1/s" => "per second".to_owned(),
        other => other.to_owned(),
    }
}

fn wrong(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("draw a plot: {error}")
}
