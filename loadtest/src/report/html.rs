//! The report as one page with plots that needs nothing from outside: no script, no font, no picture.

use anyhow::Result;

use crate::report::{DIRECT, Group, Line, distinct, figure, limits, lines, peer, planes, plot, times};
use crate::result::Outcome;

const STYLE: &str = include_str!("page.css");

/// The whole page.
pub fn render(outcome: &Outcome) -> Result<String> {
    let lines = lines(&outcome.rows);
    let mut body = String::from("<h1>Culvert beside direct TCP and a sidecar</h1>\n");
    body.push_str(&format!("<p>Made by <code>{}</code> in {:.0} s.</p>\n", text(&outcome.command), outcome.seconds));
    body.push_str(&facts(outcome));
    body.push_str(&limits_table(&lines));
    body.push_str(&legend(outcome));
    for group in Group::ALL {
        let here: Vec<&Line<'_>> = lines.iter().filter(|line| Group::of(line.scenario, line.unit) == group).collect();
        if here.is_empty() {
            continue;
        }
        body.push_str(&format!("<h2>{}</h2>\n<div class=\"plots\">\n", group.title()));
        for scenario in distinct(here.iter().map(|line| line.scenario)) {
            let of_scenario: Vec<&Line<'_>> = here.iter().copied().filter(|line| line.scenario == scenario).collect();
            for metric in distinct(of_scenario.iter().map(|line| line.metric)) {
                let of_metric: Vec<&Line<'_>> =
                    of_scenario.iter().copied().filter(|line| line.metric == metric).collect();
                let title = format!("{} · {}", text(scenario), text(metric));
                let svg = plot::svg(&of_metric)?;
                body.push_str(&format!("<figure><figcaption>{title}</figcaption>{svg}</figure>\n"));
            }
        }
        body.push_str("</div>\n");
        body.push_str(&figures(outcome, &here));
    }
    if !outcome.notes.is_empty() {
        body.push_str("<h2>Notes</h2>\n<ul>\n");
        outcome.notes.iter().for_each(|note| body.push_str(&format!("<li>{}</li>\n", text(note))));
        body.push_str("</ul>\n");
    }
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\">\n<title>Culvert: figures</title>\n<style>\n{STYLE}</style>\n\
         </head>\n<body>\n{body}</body>\n</html>\n"
    ))
}

/// What is longer than a few lines is folded away: a sidecar's configuration is a page of its own.
const LONG: usize = 300;

fn facts(outcome: &Outcome) -> String {
    let shown = |value: &String| match value.len() {
        ..LONG => text(value),
        length => format!("<details><summary>{length} characters</summary><pre>{}</pre></details>", text(value)),
    };
    let rows =
        outcome.machine.iter().map(|(name, value)| format!("<dt>{}</dt><dd>{}</dd>\n", text(name), shown(value)));
    format!("<dl>\n{}</dl>\n", rows.collect::<String>())
}

fn legend(outcome: &Outcome) -> String {
    let keys = planes(&outcome.rows).into_iter().map(|plane| {
        let colour = plot::colour(plane);
        let (r, g, b) = (colour.0, colour.1, colour.2);
        format!("<span><i style=\"background: rgb({r} {g} {b})\"></i>{}</span>\n", text(plane))
    });
    format!(
        "<p class=\"legend\">{}</p>\n<p>Bars are medians, whiskers the smallest and largest run; a bar without \
         one is of a single run. <b>{DIRECT}</b> is the same \
         pods and links without capture.</p>\n",
        keys.collect::<String>()
    )
}

fn limits_table(lines: &[Line<'_>]) -> String {
    let mut table = String::from(
        "<h2>Limits</h2>\n<table>\n<tr><th>limit</th><th>scenario</th><th>path</th><th>bound</th><th>seen</th><th></th></tr>\n",
    );
    for one in limits::judge(lines) {
        let class = match &one.seen {
            None => "absent",
            Some((_, true)) => "reached",
            Some((_, false)) => "missed",
        };
        let seen = one.seen.as_ref().map(|(seen, _)| seen.as_str()).unwrap_or_default();
        table.push_str(&format!(
            "<tr class=\"{class}\"><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{seen}</td><td>{}</td></tr>\n",
            one.name,
            one.scenario,
            text(one.path.as_deref().unwrap_or_default()),
            one.bound,
            one.verdict().trim_matches('*'),
        ));
    }
    table + "</table>\n"
}

/// The same figures as a table, folded away.
fn figures(outcome: &Outcome, lines: &[&Line<'_>]) -> String {
    let planes = planes(&outcome.rows);
    let heads: String = planes.iter().map(|plane| format!("<th>{}</th>", text(plane))).collect();
    let mut table = format!(
        "<details><summary>The figures</summary>\n<table>\n<tr><th>scenario</th><th>path</th><th>metric</th>{heads}\
         <th>peer</th></tr>\n"
    );
    for line in lines {
        let cells: String = planes.iter().map(|plane| format!("<td>{}</td>", cell(line, plane))).collect();
        let peer = match peer::find(line.scenario, line.path, line.metric) {
            Some(peer::Value::Ratio(ratio)) => times(ratio),
            Some(peer::Value::Plain(value)) => super::number(value),
            None => String::new(),
        };
        table.push_str(&format!(
            "<tr><td>{}</td><td>{}</td><td>{} {}</td>{cells}<td>{peer}</td></tr>\n",
            text(line.scenario),
            text(line.path),
            text(line.metric),
            text(line.unit)
        ));
    }
    table + &format!("</table>\n<p>peer: {}, measured on this kind of machine.</p></details>\n", peer::NAME)
}

fn cell(line: &Line<'_>, plane: &str) -> String {
    let Some(row) = line.of(plane) else { return String::new() };
    match line.ratio(plane).filter(|_| plane != DIRECT) {
        Some(ratio) => format!("{} · {}", figure(row), times(ratio)),
        None => figure(row),
    }
}

/// Text that cannot become markup.
fn text(raw: &str) -> String {
    raw.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::testing;

    #[test]
    fn the_page_needs_nothing_from_outside() {
        let page = render(&testing::outcome()).expect("a page");
        let own = page.replace("http://www.w3.org/2000/svg", "");
        for outside in ["http:", "https:", "<script", "<link", "@import", "url(", " src=", "<iframe"] {
            assert!(!own.contains(outside), "{outside}");
        }
    }

    #[test]
    fn every_figure_has_its_plot_with_axis_and_legend() {
        let page = render(&testing::outcome()).expect("a page");
        assert_eq!(page.matches("<svg").count(), 4, "p50, proxy_cpu, rate, ready");
        for shown in ["µs of CPU per operation", "per second", "exchange-1KiB-1 · p50", "class=\"legend\""] {
            assert!(page.contains(shown), "{shown}");
        }
    }

    #[test]
    fn text_from_the_machine_is_not_markup() {
        let page = render(&testing::outcome()).expect("a page");
        assert!(page.contains("2 cores of a &lt;test&gt; machine") && page.contains("6.1 &amp; later"));
    }
}
