# The gateway in a slim image: dependencies exactly as in requirements.lock, no compiler, no root, nothing to write.
#   docker build -t kmip-gateway .                      the product, with compiled hot modules: some minutes
#   docker build -t kmip-gateway-lab --target lab .     simulated key managers, certificates and measurements, for a try
FROM python:3.11-slim AS source
WORKDIR /build
COPY requirements.lock pyproject.toml README.md CHANGELOG.md ./
COPY gateway gateway
COPY config config
RUN python -m venv /opt/kmip-gateway \
 && /opt/kmip-gateway/bin/pip install --no-cache-dir --require-hashes -r requirements.lock \
 && /opt/kmip-gateway/bin/pip install --no-cache-dir --no-deps .

# The same installed once more, with compiled hot modules. See docs/performance.md.
FROM source AS compiled
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
COPY hatch_build.py .
RUN HATCH_BUILD_HOOK_ENABLE_CUSTOM=true \
    /opt/kmip-gateway/bin/pip install --no-cache-dir --no-deps --force-reinstall .

# The simulated key managers inherit from a class of the gateway, which they can't if it is compiled.
FROM source AS build-lab
COPY lab lab
RUN /opt/kmip-gateway/bin/pip install --no-cache-dir --require-hashes -r lab/requirements.lock \
 && /opt/kmip-gateway/bin/pip install --no-cache-dir --no-deps ./lab

FROM python:3.11-slim AS base
RUN useradd --system --uid 5696 --no-create-home --shell /usr/sbin/nologin kmip-gateway \
 && mkdir /certificates /var/lib/kmip-gateway /etc/kmip-gateway \
 && chown kmip-gateway /certificates /var/lib/kmip-gateway
USER kmip-gateway
ENV PATH=/opt/kmip-gateway/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
STOPSIGNAL SIGTERM

FROM base AS lab
COPY --from=build-lab /opt/kmip-gateway /opt/kmip-gateway
ENTRYPOINT ["kmip-lab"]

FROM base
COPY --from=compiled /opt/kmip-gateway /opt/kmip-gateway
EXPOSE 5696 9696
# Mount the configuration and its certificates here, readable by user 5696. The root file system may be read-only; the key
# of the marks ([replication] mark_key_file) wants a place to be kept: /var/lib/kmip-gateway.
VOLUME ["/etc/kmip-gateway", "/var/lib/kmip-gateway"]
# The address is that of [admin] bind. /livez needs no token. If the port speaks TLS ([admin] certificate), give a
# --health-cmd of your own.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9696/livez', timeout=2)"]
ENTRYPOINT ["kmip-gateway"]
CMD ["run", "/etc/kmip-gateway/gateway.toml"]
