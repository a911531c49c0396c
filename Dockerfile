# Penstock on the CPU: docker build -t penstock . && docker run -p 8000:8000 penstock
# On GPUs:             docker build --build-arg EXTRAS=torch,onnx-gpu,grpc -t penstock:gpu .
#                      docker run --gpus all -p 8000:8000 penstock:gpu
# It serves the digits example; mount your own pipelines over /pipelines.
# This file has not been built yet: docs/how-to/docker.md says which of its steps have been tried.
FROM python:3.12-slim AS build
ARG EXTRAS=""
WORKDIR /source
COPY . .
RUN python -m venv /opt/penstock && /opt/penstock/bin/pip install --no-cache-dir ".${EXTRAS:+[$EXTRAS]}"
# onnxruntime and onnxruntime-gpu write the same folder: only one may be installed, and once.
RUN case ",$EXTRAS," in *,onnx-gpu,*) \
        /opt/penstock/bin/pip uninstall -y onnxruntime onnxruntime-gpu && \
        /opt/penstock/bin/pip install --no-cache-dir onnxruntime-gpu ;; \
    esac

FROM python:3.12-slim
RUN useradd --system --uid 10001 --no-create-home penstock && install -d -o penstock /cache
COPY --from=build /opt/penstock /opt/penstock
COPY examples/digits /pipelines
# CUDA's libraries are in the packages of the extras. The driver comes from the host, and only where
# the container is run with --gpus.
ENV PATH=/opt/penstock/bin:$PATH PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/cache NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER penstock
WORKDIR /pipelines
EXPOSE 8000
# Not ready means loading, draining, or a node without executors. Only a restart mends the last, so
# the check asks for readiness.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/ready', timeout=2)"]
ENTRYPOINT ["penstock", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["/pipelines"]
