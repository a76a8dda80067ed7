# The gateway in a slim image: dependencies exactly as in requirements.lock, no compiler, no root.
FROM python:3.11-slim AS build
WORKDIR /build
COPY requirements.lock pyproject.toml README.md CHANGELOG.md ./
COPY gateway gateway
COPY config config
RUN python -m venv /opt/kmip-gateway \
 && /opt/kmip-gateway/bin/pip install --no-cache-dir --require-hashes -r requirements.lock \
 && /opt/kmip-gateway/bin/pip install --no-cache-dir --no-deps .

FROM python:3.11-slim
COPY --from=build /opt/kmip-gateway /opt/kmip-gateway
RUN useradd --system --uid 5696 --no-create-home --shell /usr/sbin/nologin kmip-gateway
USER kmip-gateway
ENV PATH=/opt/kmip-gateway/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
EXPOSE 5696 9696
# Mount the configuration and its certificates here, readable by user 5696.
VOLUME ["/etc/kmip-gateway"]
# The address is that of [admin] bind.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9696/livez', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["kmip-gateway"]
CMD ["run", "/etc/kmip-gateway/gateway.toml"]
