//! A recorder of metrics that tests can look into.

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex},
};

/// The observations of one metric with its labels: the sum of a counter, the last value of a gauge.
#[derive(Debug, Default)]
struct Values(Mutex<Vec<f64>>);

impl Values {
    fn change(&self, change: impl FnOnce(f64) -> f64) {
        let mut values = self.0.lock().unwrap();
        let now = values.pop().unwrap_or_default();
        values.push(change(now));
    }
}

impl CounterFn for Values {
    fn increment(&self, by: u64) {
        self.change(|now| now + by as f64);
    }

    fn absolute(&self, value: u64) {
        self.change(|_| value as f64);
    }
}

impl GaugeFn for Values {
    fn increment(&self, by: f64) {
        self.change(|now| now + by);
    }

    fn decrement(&self, by: f64) {
        self.change(|now| now - by);
    }

    fn set(&self, value: f64) {
        self.change(|_| value);
    }
}

impl HistogramFn for Values {
    fn record(&self, value: f64) {
        self.0.lock().unwrap().push(value);
    }
}

type Described = (String, String, String);

#[derive(Debug, Default)]
pub(crate) struct TestRecorder {
    values: Mutex<HashMap<Key, Arc<Values>>>,
    described: Mutex<BTreeMap<String, Described>>,
}

impl TestRecorder {
    fn values(&self, key: &Key) -> Arc<Values> {
        self.values.lock().unwrap().entry(key.clone()).or_default().clone()
    }

    fn describe(&self, kind: &str, name: KeyName, unit: Option<Unit>, meaning: SharedString) {
        let unit = unit.map(|unit| unit.as_str().to_owned()).unwrap_or_default();
        let row = (kind.to_owned(), unit, meaning.into_owned());
        self.described.lock().unwrap().insert(name.as_str().to_owned(), row);
    }

    /// Type, unit and meaning of each metric.
    pub(crate) fn described(&self) -> BTreeMap<String, Described> {
        self.described.lock().unwrap().clone()
    }

    /// The names of the labels of each metric.
    pub(crate) fn labels(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut all = BTreeMap::<_, BTreeSet<_>>::new();
        for key in self.values.lock().unwrap().keys() {
            let labels = key.labels().map(|label| label.key().to_owned());
            all.entry(key.name().to_owned()).or_default().extend(labels);
        }
        all
    }

    /// The values of the one metric of that name with these labels, in any order.
    pub(crate) fn histogram(&self, name: &str, labels: &[(&str, &str)]) -> Vec<f64> {
        let wanted: BTreeSet<_> = labels.iter().copied().collect();
        let values = self.values.lock().unwrap();
        let found = values.iter().find(|(key, _)| {
            key.name() == name
                && key.labels().map(|l| (l.key(), l.value())).collect::<BTreeSet<_>>() == wanted
        });
        found.map(|(_, values)| values.0.lock().unwrap().clone()).unwrap_or_default()
    }

    pub(crate) fn gauge(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.histogram(name, labels).pop().unwrap_or_default()
    }

    pub(crate) fn counter(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        self.gauge(name, labels) as u64
    }
}

impl Recorder for TestRecorder {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, meaning: SharedString) {
        self.describe("counter", name, unit, meaning);
    }

    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, meaning: SharedString) {
        self.describe("gauge", name, unit, meaning);
    }

    fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, meaning: SharedString) {
        self.describe("histogram", name, unit, meaning);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.values(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.values(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.values(key))
    }
}
