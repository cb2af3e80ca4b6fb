//! Opening a connection to a node: the socket, and TLS over it as `sslmode` says, in libpq's order.

use super::ServerError;
use crate::cluster::SslMode;
use crate::net::{self, ClientTls, ServerTls, Stream, TlsClientError};
use std::time::Duration;

/// "invalid authorization specification": no line of the server's pg_hba.conf lets us in this way, perhaps another way.
pub const NO_RULE: &str = "28000";

/// Where to connect.
#[derive(Clone, Debug)]
pub struct Target {
    /// Host name, address, or directory of the Unix socket.
    pub host: String,
    /// Port.
    pub port: u16,
    /// TLS policy.
    pub sslmode: SslMode,
    /// TLS by that policy; `None` never asks for TLS.
    pub tls: Option<ClientTls>,
    /// TCP keepalive: idle time before the first probe.
    pub keepalive: Duration,
}

impl Target {
    /// A node's address with TLS ready as far as `sslmode` may come to it.
    pub fn new(
        host: &str,
        port: u16,
        sslmode: SslMode,
        server_tls: &ServerTls,
        keepalive: Duration,
    ) -> Result<Target, TlsClientError> {
        let tls = match sslmode {
            SslMode::Disable => None,
            _ if net::is_unix(host) => None,
            mode => Some(server_tls.config(mode)?),
        };
        Ok(Target { host: host.to_owned(), port, sslmode, tls, keepalive })
    }

    /// How to try first, and how else when [`is_worth_another_way`]: `allow` begins plain, `prefer` with TLS
    /// (<https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-SSLMODE>). A Unix socket is always plain.
    pub fn ways(&self) -> (SslMode, Option<SslMode>) {
        match self.sslmode {
            _ if net::is_unix(&self.host) => (SslMode::Disable, None),
            SslMode::Allow => (SslMode::Disable, Some(SslMode::Require)),
            SslMode::Prefer => (SslMode::Prefer, Some(SslMode::Disable)),
            only @ (SslMode::Disable | SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => (only, None),
        }
    }
}

/// Whether a failure may be one of this way only. `tls`: the way that failed had TLS.
pub fn is_worth_another_way(code: Option<&str>, tls: bool, other: SslMode) -> bool {
    // Going from TLS back to plain is another way only when there was TLS.
    let another = tls || other != SslMode::Disable;
    // Without a code it was TLS itself that failed.
    another && code.is_none_or(|code| code == NO_RULE)
}

/// Opens a socket and goes over to TLS in the given way, with the certificate of a database's section if it has one.
pub async fn open(
    target: &Target,
    way: SslMode,
    timeout: Duration,
    certificate_of: Option<&str>,
) -> Result<Stream, ServerError> {
    let stream = net::connect(&target.host, target.port, timeout, target.keepalive).await?;
    match (&target.tls, way) {
        (_, SslMode::Disable | SslMode::Allow) | (None, SslMode::Prefer) => Ok(stream),
        (Some(tls), way) => {
            let tls = tls.of(certificate_of).clone();
            Ok(net::upgrade_client(stream, way, &target.host, tls).await?)
        }
        (None, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => Err(ServerError::NoTls),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ways(host: &str, sslmode: SslMode) -> (SslMode, Option<SslMode>) {
        Target { host: host.into(), port: 1, sslmode, tls: None, keepalive: Duration::ZERO }.ways()
    }

    #[test]
    fn allow_and_prefer_have_two_ways_and_the_others_one() {
        assert_eq!(ways("h", SslMode::Allow), (SslMode::Disable, Some(SslMode::Require)));
        assert_eq!(ways("h", SslMode::Prefer), (SslMode::Prefer, Some(SslMode::Disable)));
        assert_eq!(ways("h", SslMode::VerifyFull), (SslMode::VerifyFull, None));
        assert_eq!(ways("/run", SslMode::VerifyFull), (SslMode::Disable, None));
    }

    #[test]
    fn only_a_missing_rule_or_failed_tls_is_tried_the_other_way() {
        assert!(is_worth_another_way(Some(NO_RULE), false, SslMode::Require));
        assert!(is_worth_another_way(Some(NO_RULE), true, SslMode::Disable));
        assert!(is_worth_another_way(None, true, SslMode::Disable));
        assert!(!is_worth_another_way(Some(NO_RULE), false, SslMode::Disable), "that was plain already");
        assert!(!is_worth_another_way(Some("28P01"), true, SslMode::Disable));
    }
}
