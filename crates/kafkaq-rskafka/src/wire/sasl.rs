//! SASL authentication.

use super::{
    connection::{Api, Connection},
    format::{Reader, Writer},
};
use crate::failure::Failure;
use kafkaq_core::ErrorKind;
use rsasl::prelude::{Mechname, SASLClient, SASLConfig};
use rskafka::client::SaslConfig;

const HANDSHAKE: [Api; 1] = [Api::new(17, 1, "SaslHandshake")];
const AUTHENTICATE: [Api; 1] = [Api::new(36, 0, "SaslAuthenticate")];

pub(super) async fn sign_in(connection: &mut Connection, sasl: &SaslConfig) -> Result<(), Failure> {
    let (mechanism, credentials) = match sasl {
        SaslConfig::Plain(credentials) => ("PLAIN", credentials),
        SaslConfig::ScramSha256(credentials) => ("SCRAM-SHA-256", credentials),
        SaslConfig::ScramSha512(credentials) => ("SCRAM-SHA-512", credentials),
        SaslConfig::Oauthbearer(_) => {
            return Err(Failure::refused(ErrorKind::Unsupported, "Use SASL PLAIN or SCRAM"));
        }
    };
    let mut handshake = Writer::default();
    handshake.string(mechanism)?;
    let mut response = ask(connection, &HANDSHAKE, handshake).await?;
    let (code, offered) = (response.int16()?, response.array(Reader::string)?);
    Failure::of_code(code, || {
        let offered: Vec<_> = offered.into_iter().flatten().collect();
        format!("asked for {mechanism}, offers {}", offered.join(", "))
    })?;

    let (user, password) = (credentials.username.clone(), credentials.password.clone());
    let config = SASLConfig::with_credentials(None, user, password).map_err(Failure::denied)?;
    let name = Mechname::parse(mechanism.as_bytes()).map_err(Failure::denied)?;
    let mut session = SASLClient::new(config).start_suggested(&[name]).map_err(Failure::denied)?;
    let mut heard = None;
    loop {
        let mut said = Vec::new();
        // The last step is ours: verifying that the server knows the password, too.
        let state = session.step(heard.as_deref(), &mut said).map_err(Failure::denied)?;
        if state.has_sent_message() {
            let mut token = Writer::default();
            token.byte_array(&said)?;
            let mut response = ask(connection, &AUTHENTICATE, token).await?;
            let (code, message) = (response.int16()?, response.string()?);
            Failure::of_code(code, || message.unwrap_or_default())?;
            heard = Some(response.byte_array()?);
        }
        if state.is_finished() {
            return Ok(());
        }
    }
}

async fn ask(
    connection: &mut Connection,
    versions: &'static [Api; 1],
    body: Writer,
) -> Result<Reader, Failure> {
    let api = connection.version_of(versions)?;
    connection.exchange(api, body).await
}
