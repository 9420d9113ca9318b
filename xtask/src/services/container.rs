//! A server's container. testcontainers creates and restarts it; for what it offers only for containers of the same
//! process, the engine is called through testcontainers' own client.

use std::pin::pin;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use testcontainers::bollard::Docker;
use testcontainers::bollard::errors::Error;
use testcontainers::bollard::models::HostConfig;
use testcontainers::bollard::query_parameters::{
    InspectContainerOptions, KillContainerOptions, LogsOptionsBuilder, RemoveContainerOptionsBuilder,
    StopContainerOptionsBuilder,
};
use testcontainers::core::IntoContainerPort;
use testcontainers::core::client::docker_client_instance;
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerRequest, GenericImage, ImageExt, ReuseDirective};

use super::POLL;
use super::docker::{Network, Recipe};
use crate::command::check_interrupt;

type Request = ContainerRequest<GenericImage>;

/// Identified by its id. It outlives this value and the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Container(String);

impl Container {
    /// Starts the container of this name if there is one, and creates it otherwise.
    pub(super) fn start(name: &str, recipe: &Recipe, network: &Network) -> Result<Self> {
        let request = request(name, recipe, network)?;
        wait(async || {
            let request = with_image(recipe.image, request).await?;
            let started =
                request.start().await.with_context(|| format!("cannot start the container {name}"))?;
            Ok(Self(started.id().to_owned()))
        })
    }

    /// A container that an earlier process started.
    pub(super) fn known(id: &str) -> Result<Self> {
        Ok(Self(id.to_owned()))
    }

    /// Removes the container of this name, running or not, with its data. A missing one is not an error.
    pub(super) fn remove(name: &str) -> Result<()> {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        match ask(async |docker| docker.remove_container(name, Some(options)).await) {
            Err(error) if is_not_found(&error) => Ok(()),
            result => result.with_context(|| format!("cannot remove the container {name}")),
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.0
    }

    pub(super) fn is_running(&self) -> bool {
        let inspect =
            ask(async |docker| docker.inspect_container(&self.0, None::<InspectContainerOptions>).await);
        inspect.is_ok_and(|container| container.state.and_then(|state| state.running).unwrap_or(false))
    }

    /// Asks it to end, and kills it when it takes longer than `limit`.
    pub(super) fn stop(&self, limit: Duration) -> Result<()> {
        let seconds = i32::try_from(limit.as_secs())?;
        let options = StopContainerOptionsBuilder::new().t(seconds).build();
        self.end(async |docker| docker.stop_container(&self.0, Some(options)).await)
    }

    pub(super) fn kill(&self) -> Result<()> {
        self.end(async |docker| docker.kill_container(&self.0, None::<KillContainerOptions>).await)
    }

    /// Also ends a paused container. A missing one is not an error.
    fn end(&self, how: impl AsyncFnOnce(Docker) -> Result<(), Error> + Send) -> Result<()> {
        if !self.is_running() {
            return Ok(());
        }
        let _ = self.resume();
        ask(how)
    }

    pub(super) fn pause(&self) -> Result<()> {
        ask(async |docker| docker.pause_container(&self.0).await)
    }

    pub(super) fn resume(&self) -> Result<()> {
        ask(async |docker| docker.unpause_container(&self.0).await)
    }

    /// The end of what it printed.
    pub(super) fn log(&self) -> String {
        let options = LogsOptionsBuilder::new().stdout(true).stderr(true).tail("40").build();
        let log = ask(async |docker| {
            let lines = docker.logs(&self.0, Some(options));
            lines.map_ok(|line| line.to_string()).try_collect().await
        });
        log.unwrap_or_else(|error| format!("no log: {error:#}"))
    }
}

/// Returns the request for testcontainers.
fn request(name: &str, recipe: &Recipe, network: &Network) -> Result<Request> {
    let (image, tag) = recipe.image.rsplit_once(':').context("an image without a tag")?;
    let mut request = GenericImage::new(image, tag)
        .with_cmd(recipe.args.iter().cloned())
        .with_container_name(name)
        // Names are looked up by a part of them, labels as a whole.
        .with_label("kafkaq", name)
        // A stopped one is restarted, and none is removed when a process ends.
        .with_reuse(ReuseDirective::Always);
    for (name, value) in &recipe.env {
        request = request.with_env_var(name, value);
    }
    Ok(match network {
        Network::Publish(ports) => ports
            .iter()
            .fold(request, |request, port| request.with_mapped_port(*port, port.tcp()))
            .with_host_config_modifier(on_the_loopback),
        Network::Of(other) => {
            // `with_network` would create a network of that name.
            let network = format!("container:{other}");
            request.with_host_config_modifier(move |host| {
                host.network_mode = Some(network.clone());
                host.publish_all_ports = None;
                host.port_bindings = None;
            })
        }
    })
}

/// Otherwise the ports would be open to the whole network.
fn on_the_loopback(host: &mut HostConfig) {
    let bindings = host.port_bindings.iter_mut().flat_map(|ports| ports.values_mut()).flatten().flatten();
    bindings.for_each(|binding| binding.host_ip = Some("127.0.0.1".to_owned()));
}

/// Fetches the image if it is missing. Separate from the start, since it takes long and may be interrupted.
async fn with_image(image: &str, request: Request) -> Result<Request> {
    if docker_client_instance().await?.inspect_image(image).await.is_ok() {
        return Ok(request);
    }
    eprintln!("fetching the image {image}");
    let mut fetching = pin!(request.pull_image());
    loop {
        if let Ok(done) = tokio::time::timeout(POLL, &mut fetching).await {
            return done.with_context(|| format!("cannot fetch the image {image}"));
        }
        check_interrupt()?;
    }
}

/// Sends one request to the engine.
fn ask<T: Send>(call: impl AsyncFnOnce(Docker) -> Result<T, Error> + Send) -> Result<T> {
    wait(async || Ok(call(docker_client_instance().await?).await?))
}

/// Waits for the engine. On a thread of its own, since tests start and end servers from within their own runtimes.
fn wait<T: Send>(call: impl AsyncFnOnce() -> Result<T> + Send) -> Result<T> {
    let run = || tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(call());
    thread::scope(|scope| scope.spawn(run).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn is_not_found(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Error::DockerResponseServerError { status_code: 404, .. }))
}

#[cfg(test)]
mod tests {
    use testcontainers::bollard::API_DEFAULT_VERSION;
    use testcontainers::bollard::models::PortBinding;

    use super::super::{Server, Service, are_containers, docker};
    use super::*;

    fn recipe() -> Recipe {
        let env = vec![("A".to_owned(), "b c".to_owned())];
        Recipe { image: "quay.io/some/server:v1.2", env, args: vec!["server".to_owned(), "-p".to_owned()] }
    }

    /// Returns the host config that the engine will get, starting from what testcontainers sets by itself.
    fn host_config(request: &Request) -> HostConfig {
        let binding = |port: u16| PortBinding { host_ip: None, host_port: Some(port.to_string()) };
        let bindings = request.ports().into_iter().flatten();
        let bindings = bindings.map(|p| (p.container_port().to_string(), Some(vec![binding(p.host_port())])));
        let mut host = HostConfig {
            port_bindings: Some(bindings.collect()),
            publish_all_ports: Some(true),
            ..HostConfig::default()
        };
        request.host_config_modifier().unwrap()(&mut host);
        host
    }

    #[test]
    fn the_engine_is_asked_for_what_the_recipe_says() {
        let request = request("kafkaq-x-1", &recipe(), &Network::Publish(vec![20_001])).unwrap();
        assert_eq!(request.descriptor(), "quay.io/some/server:v1.2");
        assert_eq!(request.cmd().collect::<Vec<_>>(), ["server", "-p"]);
        assert_eq!(request.env_vars().collect::<Vec<_>>(), [("A".into(), "b c".into())]);
        assert_eq!(request.container_name().as_deref(), Some("kafkaq-x-1"));
    }

    #[test]
    fn a_container_is_published_on_the_loopback_only() {
        let request = request("x", &recipe(), &Network::Publish(vec![20_001, 20_002])).unwrap();
        let bindings = host_config(&request).port_bindings.unwrap();
        assert_eq!(bindings.len(), 2);
        for port in [20_001, 20_002] {
            let host = PortBinding { host_ip: Some("127.0.0.1".into()), host_port: Some(port.to_string()) };
            assert_eq!(bindings[&format!("{port}/tcp")], Some(vec![host]));
        }
    }

    #[test]
    fn further_nodes_of_a_cluster_share_the_network_of_the_first() {
        let request = request("second", &recipe(), &Network::Of("first".to_owned())).unwrap();
        let host = host_config(&request);
        assert_eq!(host.network_mode.as_deref(), Some("container:first"));
        assert_eq!((host.port_bindings, host.publish_all_ports), (None, None));
    }

    #[test]
    fn the_engine_is_looked_for_in_the_version_that_testcontainers_speaks() {
        assert_eq!(API_DEFAULT_VERSION.to_string(), docker::API);
    }

    fn start(service: Service) -> Option<Server> {
        if !are_containers() {
            eprintln!("not checked: no Docker engine answers");
            return None;
        }
        let dir = std::env::temp_dir().join(format!("kafkaq-container-{service}-{}", std::process::id()));
        Some(service.start(dir, None).unwrap())
    }

    /// On an engine, also from within a runtime, as most tests do it.
    #[test]
    fn a_container_is_paused_killed_and_started_again_on_its_port() {
        let Some(mut redis) = start(Service::Redis) else { return };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let address = redis.addr();
            assert!(redis.is_running() && redis.answers() && redis.pid().is_none());
            redis.pause().unwrap();
            assert!(redis.is_running() && !redis.answers());
            redis.resume().unwrap();
            assert!(redis.answers());
            redis.pause().unwrap();
            redis.kill().unwrap();
            assert!(!redis.is_running() && !redis.answers());
            redis.start_again().unwrap();
            assert!(redis.answers());
            redis.stop().unwrap();
            assert!(!redis.answers());
            redis.start_again_empty().unwrap();
            assert_eq!((redis.answers(), redis.addr()), (true, address));
        });
    }

    #[test]
    fn nodes_in_containers_form_a_cluster_also_when_they_come_back() {
        let Some(mut cluster) = start(Service::RedisCluster) else { return };
        assert!(cluster.answers());
        cluster.start_again().unwrap();
        assert!(cluster.answers());
        cluster.start_again_empty().unwrap();
        assert!(cluster.answers());
    }

    #[test]
    fn container_is_found_by_its_id_and_removed_with_its_server() {
        let name = format!("kafkaq-test-{}", std::process::id());
        if !are_containers() {
            eprintln!("not checked: no Docker engine answers");
            return;
        }
        let recipe =
            (Service::Redis.kind().container)(super::super::ports::Ports { client: 1, peer: 2, told: 1 });
        let ours = Container::start(&name, &recipe, &Network::Publish(Vec::new())).unwrap();
        let theirs = Container::known(ours.id()).unwrap();
        assert!(theirs.is_running());
        assert_eq!(Container::start(&name, &recipe, &Network::Publish(Vec::new())).unwrap(), ours);
        theirs.stop(Duration::from_secs(10)).unwrap();
        assert!(!ours.is_running());
        assert!(ours.log().contains("Redis"), "{}", ours.log());
        Container::remove(&name).unwrap();
        Container::remove(&name).unwrap();
        assert!(ours.log().starts_with("no log"));
    }
}
