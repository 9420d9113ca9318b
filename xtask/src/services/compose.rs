//! Checks of the compose files in `docker/`: the same servers as ours, for this machine only, in all pairs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use yaml_rust2::{Yaml, YamlLoader};

use super::Service;
use super::ports::Ports;
use crate::command::capture;

const BROKERS: [Service; 2] = [Service::Kafka, Service::Redpanda];
const STORES: [Service; 3] = [Service::Redis, Service::Etcd, Service::ZooKeeper];

fn folder() -> PathBuf {
    crate::root().join("docker")
}

fn pairs() -> impl Iterator<Item = (Service, Service, PathBuf)> {
    let pair = |broker, store| (broker, store, folder().join(format!("compose.{broker}-{store}.yml")));
    BROKERS.into_iter().flat_map(move |broker| STORES.map(|store| pair(broker, store)))
}

fn load(path: &Path) -> Yaml {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut documents =
        YamlLoader::load_from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(documents.len(), 1, "{}", path.display());
    documents.remove(0)
}

fn texts(list: &Yaml) -> Vec<&str> {
    list.as_vec().map_or_else(Vec::new, |list| list.iter().filter_map(Yaml::as_str).collect())
}

#[test]
fn a_composed_server_is_the_one_that_the_tests_run_on() {
    for service in BROKERS.into_iter().chain(STORES) {
        let file = load(&folder().join(format!("services/{service}.yml")));
        let services = file["services"].as_hash().unwrap();
        assert_eq!(services.len(), 1, "{service}");
        let composed = &file["services"][service.name()];
        let recipe = (service.kind().container)(Ports { client: 1, peer: 2, told: 1 });
        assert_eq!(composed["image"].as_str(), Some(recipe.image));
        let (_, tag) = recipe.image.rsplit_once(':').unwrap();
        assert!(tag.matches('.').count() >= 2, "{service}: {tag} may be a different image tomorrow");
        assert!(!texts(&composed["healthcheck"]["test"]).is_empty(), "{service} has no health check");
    }
}

#[test]
fn composed_servers_are_published_on_the_loopback_only() {
    for service in BROKERS.into_iter().chain(STORES) {
        let file = load(&folder().join(format!("services/{service}.yml")));
        let ports = texts(&file["services"][service.name()]["ports"]);
        assert_eq!(ports.len(), 1, "{service}");
        assert!(ports[0].starts_with("127.0.0.1:"), "{service}: {ports:?}");
    }
}

#[test]
fn each_pair_has_a_compose_file_with_its_two_servers() {
    for (broker, store, path) in pairs() {
        let file = load(&path);
        let both = [format!("services/{broker}.yml"), format!("services/{store}.yml")];
        assert_eq!(texts(&file["include"]), both, "{}", path.display());
    }
    let there = fs::read_dir(folder())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("compose."));
    assert_eq!(there.count(), pairs().count());
}

/// Docker's own judgement, where it is installed.
#[test]
fn compose_accepts_the_files() {
    if capture(Command::new("docker").args(["compose", "version"])).is_err() {
        eprintln!("not checked: there is no `docker compose`");
        return;
    }
    for (_, _, path) in pairs() {
        capture(Command::new("docker").args(["compose", "-f"]).arg(&path).args(["config", "--quiet"]))
            .unwrap();
    }
}
