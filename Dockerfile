# Penstock on the CPU: docker build -t penstock . && docker run -p 8000:8000 penstock
# It serves the digits example; mount your own pipelines over /pipelines.
# This file has not been built yet: docs/how-to/docker.md says which of its steps have been tried.
FROM python:3.12-slim AS build
WORKDIR /source
COPY . .
RUN python -m venv /opt/penstock && /opt/penstock/bin/pip install --no-cache-dir .

FROM python:3.12-slim
RUN useradd --system --uid 10001 --no-create-home penstock
COPY --from=build /opt/penstock /opt/penstock
COPY examples/digits /pipelines
ENV PATH=/opt/penstock/bin:$PATH PYTHONUNBUFFERED=1
USER penstock
WORKDIR /pipelines
EXPOSE 8000
# Not ready means loading, draining, or a node without executors. Only a restart mends the last, so
# the check asks for readiness.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/ready', timeout=2)"]
ENTRYPOINT ["penstock", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["/pipelines"]
