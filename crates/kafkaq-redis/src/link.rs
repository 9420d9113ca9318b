//! Connects to one server.

use crate::failure;
use kafkaq_core::{
    Operation, Result,
    connection::{Call, Connect, Reply, SharedConnection},
};
use redis::{AsyncConnectionConfig, Client, Pipeline, ServerError, Value, aio::MultiplexedConnection};

/// How many requests may wait to be written. One request is a whole batch.
const SEND_QUEUE: usize = 256;
/// The size of the write buffer, in bytes, so that a batch is written at once.
const WRITE_BUFFER: usize = 256 * 1024;

/// One connection to a server.
pub(crate) type Link = SharedConnection<Dialer>;

pub(crate) struct Dialer {
    client: Client,
    address: String,
    config: AsyncConnectionConfig,
}

impl Dialer {
    pub(crate) fn new(client: Client) -> Self {
        let address = client.get_connection_info().addr().to_string();
        // The redis crate's limits don't cover the other half of the call, so ours cover both.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_pipeline_buffer_size(SEND_QUEUE)
            .set_write_backpressure_boundary(WRITE_BUFFER);
        Dialer { client, address, config }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }
}

impl Connect for Dialer {
    const OPERATION: Operation = Operation::read("connect to Redis");
    type Connection = MultiplexedConnection;

    async fn connect(&self, _: Call) -> Result<MultiplexedConnection> {
        let connecting = self.client.get_multiplexed_async_connection_with_config(&self.config);
        connecting.await.map_err(|e| failure::not_connected(&self.address, e))
    }

    async fn ping(&self, connection: &MultiplexedConnection, call: Call) -> Result<()> {
        // A server that refuses the ping is alive, too.
        let answer = connection.clone().send_packed_command(&redis::cmd("PING")).await;
        answer.map(drop).map_err(|e| failure::broken(call.operation, &self.address, e))
    }

    fn server(&self, _: Option<&MultiplexedConnection>) -> String {
        format!("Redis at {}", self.address)
    }
}

/// Sends commands and returns one response each, including server errors.
///
/// Dropping the future, or the timeout, leaves the connection in sync: the redis crate keeps the request's place in the
/// queue of expected responses and discards the response.
pub(crate) async fn send(link: &Link, call: Call, commands: &Pipeline) -> Result<Vec<Value>> {
    link.send(call, |mut connection| async move {
        match connection.send_packed_commands(commands, 0, commands.len()).await {
            // The server is only a replica: another connection may lead to the primary.
            Ok(answers) if has_error(&answers, failure::is_readonly) => Reply::Leave(Ok(answers)),
            Ok(answers) => Reply::Keep(Ok(answers)),
            Err(e) => Reply::Leave(Err(failure::broken(call.operation, link.connect().address(), e))),
        }
    })
    .await
}

/// Returns whether a response, or one to a part of a command, is such an error.
pub(crate) fn has_error(answers: &[Value], is_meant: fn(&ServerError) -> bool) -> bool {
    answers.iter().any(|answer| match answer {
        Value::ServerError(e) => is_meant(e),
        Value::Array(items) => has_error(items, is_meant),
        _ => false,
    })
}
