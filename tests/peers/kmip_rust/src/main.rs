//! Drives the client of the crate kmip-protocol, which Krill uses: HOST PORT CA CERTIFICATE KEY.
//!
//! Prints a line for each result: identifiers that the server chose as #1, #2 in the order in which they appeared, and
//! values that the server made up by their length.

use std::collections::HashMap;
use std::env;
use std::fmt::Display;
use std::fs;
use std::time::Duration;

use kmip_protocol::client::tls::openssl::connect;
use kmip_protocol::client::{ClientCertificate, ConnectionSettings};

/// The identifiers that have appeared.
#[derive(Default)]
struct Names(HashMap<String, usize>);

impl Names {
    fn known(&mut self, identifier: &str) -> String {
        let next = self.0.len() + 1;
        format!("#{}", self.0.entry(identifier.to_string()).or_insert(next))
    }

    /// Return an error without the identifiers that the server chose: the long ones, and any one at the end.
    fn text(&self, error: impl Display) -> String {
        let mut text = format!("error: {error}").replace('\n', " ");
        for (identifier, number) in &self.0 {
            if identifier.len() > 8 {
                text = text.replace(identifier, &format!("#{number}"));
            } else if let Some(start) = text.strip_suffix(&format!(": {identifier}")) {
                text = format!("{start}: #{number}");
            }
        }
        text
    }
}

fn settings(arguments: &[String], password: bool) -> ConnectionSettings {
    let read = |path: &String| fs::read(path).expect("a readable file");
    ConnectionSettings {
        host: arguments[0].clone(),
        port: arguments[1].parse().expect("a port"),
        username: password.then(|| "user".to_string()),
        password: password.then(|| "a password".to_string()),
        insecure: false,
        client_cert: Some(ClientCertificate::SeparatePem {
            cert_bytes: read(&arguments[3]),
            key_bytes: Some(read(&arguments[4])),
        }),
        server_cert: None,
        ca_cert: Some(read(&arguments[2])),
        connect_timeout: Some(Duration::from_secs(10)),
        read_timeout: Some(Duration::from_secs(20)),
        write_timeout: Some(Duration::from_secs(20)),
        max_response_bytes: Some(65536),
    }
}

/// What Krill does with a key manager: make a key pair for signing, sign, and destroy the pair.
fn life(topic: &str, arguments: &[String], password: bool, names: &mut Names) {
    let client = match connect(&settings(arguments, password)) {
        Ok(client) => client,
        Err(error) => return println!("{topic} connect: {}", names.text(error)),
    };
    match client.query() {
        Ok(found) => {
            let mut operations: Vec<String> =
                found.operations.unwrap_or_default().iter().map(|each| format!("{each:?}")).collect();
            operations.sort();
            println!("{topic} query: {}", operations.join(" "));
        }
        Err(error) => println!("{topic} query: {}", names.text(error)),
    }
    match client.rng_retrieve(32) {
        Ok(found) => println!("{topic} random: {} bytes", found.data.len()),
        Err(error) => println!("{topic} random: {}", names.text(error)),
    }
    let pair = match client.create_rsa_key_pair(2048, format!("{topic} private"), format!("{topic} public")) {
        Ok(pair) => pair,
        Err(error) => return println!("{topic} key pair: {}", names.text(error)),
    };
    println!("{topic} key pair: {} {}", names.known(&pair.0), names.known(&pair.1));
    match client.get_key(&pair.1) {
        Ok(found) => println!("{topic} get: {} {:?}", names.known(&found.unique_identifier), found.object_type),
        Err(error) => println!("{topic} get: {}", names.text(error)),
    }
    match client.rename_key(&pair.1, "another name".to_string()) {
        Ok(found) => println!("{topic} rename: {}", names.known(&found.unique_identifier)),
        Err(error) => println!("{topic} rename: {}", names.text(error)),
    }
    match client.activate_key(&pair.0) {
        Ok(()) => println!("{topic} activate: done"),
        Err(error) => println!("{topic} activate: {}", names.text(error)),
    }
    match client.sign(&pair.0, b"data to sign") {
        Ok(found) => println!("{topic} sign: {} bytes", found.signature_data.len()),
        Err(error) => println!("{topic} sign: {}", names.text(error)),
    }
    match client.revoke_key(&pair.0) {
        Ok(()) => println!("{topic} revoke: done"),
        Err(error) => println!("{topic} revoke: {}", names.text(error)),
    }
    for key in [&pair.0, &pair.1] {
        match client.destroy_key(key) {
            Ok(()) => println!("{topic} destroy: done"),
            Err(error) => println!("{topic} destroy: {}", names.text(error)),
        }
    }
    match client.get_key(&pair.0) {
        Ok(_) => println!("{topic} get after destroy: a key"),
        Err(error) => println!("{topic} get after destroy: {}", names.text(error)),
    }
    println!("{topic}: {} connection errors", client.connection_error_count());
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let mut names = Names::default();
    life("certificate", &arguments, false, &mut names);
    life("password", &arguments, true, &mut names);
}
