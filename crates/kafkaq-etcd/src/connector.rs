//! Opens the connections of a channel, with a pause between them.
//!
//! When a connection ends before it carried a request, tonic's channel reconnects immediately and without limit. If the
//! other side accepts and closes, as a load balancer without backends does, that is a busy loop for as long as the call
//! lasts.

use hyper_util::client::legacy::connect::HttpConnector;
use kafkaq_core::lock;
use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, sleep_until};
use tonic::transport::{Endpoint, Uri};
use tower_service::Service;

/// The pause between the first two connections. Doubles from one to the next.
const FIRST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_secs(1);

/// The connector of one channel.
#[derive(Clone)]
pub(crate) struct Connector {
    tcp: HttpConnector,
    pace: Arc<Mutex<Pace>>,
}

impl Connector {
    /// Creates a connector with the TCP options of an endpoint.
    pub(crate) fn of(endpoint: &Endpoint) -> Self {
        let mut tcp = HttpConnector::new();
        // The channel itself adds TLS.
        tcp.enforce_http(false);
        tcp.set_nodelay(endpoint.get_tcp_nodelay());
        tcp.set_keepalive(endpoint.get_tcp_keepalive());
        tcp.set_keepalive_interval(endpoint.get_tcp_keepalive_interval());
        tcp.set_keepalive_retries(endpoint.get_tcp_keepalive_retries());
        Connector { tcp, pace: Arc::default() }
    }
}

type TcpStream = <HttpConnector as Service<Uri>>::Response;
type Failure = <HttpConnector as Service<Uri>>::Error;

impl Service<Uri> for Connector {
    type Response = TcpStream;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<TcpStream, Failure>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.tcp.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let at = lock(&self.pace).next(Instant::now());
        let mut tcp = self.tcp.clone();
        Box::pin(async move {
            sleep_until(at).await;
            tcp.call(uri).await
        })
    }
}

/// When to connect.
#[derive(Default)]
struct Pace {
    /// When the last connection was opened, and how long the next one waits after it.
    last: Option<(Instant, Duration)>,
}

impl Pace {
    /// When to open the next connection: immediately, unless the last one is recent.
    fn next(&mut self, now: Instant) -> Instant {
        let (at, pause) = match self.last {
            Some((last, pause)) if last + LONGEST > now => ((last + pause).max(now), pause * 2),
            _ => (now, FIRST),
        };
        self.last = Some((at, pause.min(LONGEST)));
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn connections_in_a_row_are_spaced_and_later_ones_are_not() {
        let mut pace = Pace::default();
        let begin = Instant::now();
        let mut since = |now| (pace.next(begin + Duration::from_millis(now)) - begin).as_millis() as u64;
        let mut at = 0;
        let hasty = [(); 9].map(|()| {
            at = since(at);
            at
        });
        assert_eq!(hasty, [0, 20, 60, 140, 300, 620, 1_260, 2_260, 3_260]);
        assert_eq!(since(4_300), 4_300, "the last one lasted a second");
        assert_eq!(since(4_301), 4_320);
    }

    #[tokio::test]
    async fn channel_reconnects_with_pauses_to_a_server_that_closes_connections() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri: Uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let hanging_up = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
        let mut connector = Connector::of(&Endpoint::from(uri.clone()));
        let begun = Instant::now();
        for _ in 0..5 {
            connector.call(uri.clone()).await.unwrap();
        }
        assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
        hanging_up.abort();
    }
}
