# Penstock on the CPU: docker build -t penstock . && docker run -p 8000:8000 penstock
# Serves the digits example; mount pipelines of your own over /pipelines. docs/how-to/docker.md says what of this file has been run.
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
# Not ready means: loading, draining, or a node without executors. The last is mended by a restart only, so it is the check here.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/ready', timeout=2)"]
ENTRYPOINT ["penstock", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["/pipelines"]
