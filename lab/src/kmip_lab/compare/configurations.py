"""The configuration of each proxy, as a good operator would write it.

All have one thread, require client certificates, resume clients' sessions by ticket and by cache, show a client
certificate to the backends and verify theirs, and keep no access log. HAProxy and nginx resume their sessions to
backends; neither is burdened with active health checks, which the gateway makes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.config import Address
from kmip_lab.certs import DevelopmentSet
from kmip_lab.tools.configurations import gateway_toml

_HAPROXY: Final = """
global
    nbthread 1
    maxconn 4000
    no strict-limits
    ssl-default-bind-options ssl-min-ver TLSv1.2
    ssl-default-bind-curves X25519:P-256
    ssl-default-server-options ssl-min-ver TLSv1.2
    tune.ssl.cachesize 20000
    tune.ssl.lifetime 3600

defaults
    mode tcp
    timeout connect 3s
    timeout client 1h
    timeout server 1h

frontend kmip
    bind {front} ssl crt {directory}/server-pair.pem ca-file {directory}/clients-ca.pem verify required
    default_backend kms

backend kms
    balance roundrobin
    default-server ssl crt {directory}/gateway-client-pair.pem ca-file {directory}/kms-ca.pem verify required
    default-server verifyhost localhost sni str(localhost)
"""
_HAPROXY_BACKEND: Final = "    server {name} {address}\n"

_NGINX: Final = """
{module}
daemon off;
worker_processes 1;
pid {directory}/nginx-{front.port}.pid;
error_log stderr error;

events {{
    worker_connections 8192;
}}

stream {{
    upstream kms {{
{backends}    }}
    server {{
        listen {front} ssl;
        ssl_certificate {directory}/server.pem;
        ssl_certificate_key {directory}/server.key;
        ssl_client_certificate {directory}/clients-ca.pem;
        ssl_verify_client on;
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_ecdh_curve X25519:prime256v1;
        ssl_session_cache shared:kmip:10m;
        ssl_session_timeout 1h;
        ssl_session_tickets on;

        proxy_pass kms;
        proxy_connect_timeout 3s;
        proxy_timeout 1h;
        proxy_ssl on;
        proxy_ssl_certificate {directory}/gateway-client.pem;
        proxy_ssl_certificate_key {directory}/gateway-client.key;
        proxy_ssl_trusted_certificate {directory}/kms-ca.pem;
        proxy_ssl_verify on;
        proxy_ssl_name localhost;
        proxy_ssl_server_name on;
        proxy_ssl_protocols TLSv1.2 TLSv1.3;
        proxy_ssl_session_reuse on;
        access_log off;
    }}
}}
"""
_NGINX_BACKEND: Final = "        server {address};\n"


@dataclass(frozen=True)
class ProxySettings:
    """Listen on ``front``, connect to ``backends``; ``spare`` is the address of the gateway's admin port.

    ``tls_workers`` is the gateway's, too. ``package`` is the directory of the gateway's package, or None for that of
    this Python.
    """

    files: DevelopmentSet
    front: Address
    spare: Address
    backends: Sequence[Address]
    tls_workers: int = 0
    package: Path | None = None

    def each_backend(self, text: str) -> str:
        """Return a piece of configuration, once for every backend."""
        return "".join(text.format(name=f"kms-{n}", address=address) for n, address in enumerate(self.backends, 1))


def gateway(settings: ProxySettings) -> str:
    """Return the gateway's configuration. Its paths are relative to the directory of the certificates."""
    backends = {f"kms-{number}": address for number, address in enumerate(settings.backends, 1)}
    workers = f"\n[gateway]\ntls_workers = {settings.tls_workers}\n"
    return gateway_toml(settings.front, settings.spare, backends, client="client", more=workers)


def haproxy(settings: ProxySettings) -> str:
    """Return HAProxy's configuration. It names files "-pair.pem" that hold a certificate and its private key."""
    text = _HAPROXY.format(front=settings.front, directory=settings.files.directory)
    return text + settings.each_backend(_HAPROXY_BACKEND)


def nginx(settings: ProxySettings, module: str) -> str:
    """Return nginx's configuration; ``module`` is the line that loads its stream module, if it must be loaded."""
    return _NGINX.format(
        front=settings.front,
        directory=settings.files.directory,
        module=module,
        backends=settings.each_backend(_NGINX_BACKEND),
    )
