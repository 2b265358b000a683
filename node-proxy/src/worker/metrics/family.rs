//! Metric families by hand, for collectors that add up what threads counted.

use std::collections::HashMap;

use prometheus::core::Desc;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

/// One label.
pub fn pair(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

/// A metric that a collector of ours tells of.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// Its name.
    pub name: &'static str,
    /// What it is, with its unit.
    pub help: &'static str,
}

impl Spec {
    /// What the registry checks for double use.
    pub fn desc(self) -> Desc {
        Desc::new(self.name.to_owned(), self.help.to_owned(), Vec::new(), HashMap::new()).expect("constant names")
    }

    /// A family of counters.
    pub fn counters(self, values: impl IntoIterator<Item = (Vec<LabelPair>, f64)>) -> MetricFamily {
        let metrics = values.into_iter().map(|(labels, value)| {
            let mut counter = Counter::default();
            counter.set_value(value);
            let mut metric = Metric::from_label(labels);
            metric.set_counter(counter);
            metric
        });
        self.family(MetricType::COUNTER, metrics.collect())
    }

    /// A family of gauges.
    pub fn gauges(self, values: impl IntoIterator<Item = (Vec<LabelPair>, f64)>) -> MetricFamily {
        let metrics = values.into_iter().map(|(labels, value)| {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            let mut metric = Metric::from_label(labels);
            metric.set_gauge(gauge);
            metric
        });
        self.family(MetricType::GAUGE, metrics.collect())
    }

    /// A family of histograms: labels, the count of each bucket (upper bounds given, one more without bound), the sum.
    pub fn histograms(
        self,
        bounds: &[f64],
        values: impl IntoIterator<Item = (Vec<LabelPair>, Vec<u64>, f64)>,
    ) -> MetricFamily {
        let metrics = values.into_iter().map(|(labels, counts, sum)| {
            let mut so_far = 0;
            let buckets = bounds.iter().zip(&counts).map(|(bound, count)| {
                so_far += count;
                let mut bucket = Bucket::default();
                bucket.set_upper_bound(*bound);
                bucket.set_cumulative_count(so_far);
                bucket
            });
            let mut histogram = Histogram::default();
            histogram.set_bucket(buckets.collect());
            histogram.set_sample_count(counts.iter().sum());
            histogram.set_sample_sum(sum);
            let mut metric = Metric::from_label(labels);
            metric.set_histogram(histogram);
            metric
        });
        self.family(MetricType::HISTOGRAM, metrics.collect())
    }

    fn family(self, field_type: MetricType, metrics: Vec<Metric>) -> MetricFamily {
        let mut family = MetricFamily::default();
        family.set_name(self.name.to_owned());
        family.set_help(self.help.to_owned());
        family.set_field_type(field_type);
        family.set_metric(metrics);
        family
    }
}
