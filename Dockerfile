# Two images from one lock file: `pipeline`, in which every stage of the pipelines runs, and `mlflow`, the tracking
# server. `make images` builds and pushes both. The service's own image is not built here: ecr_push assembles it.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

FROM ${PYTHON_IMAGE} AS build
ARG UV_VERSION=0.13.9
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PROJECT_ENVIRONMENT=/app/.venv UV_PYTHON_DOWNLOADS=never \
    UV_SYSTEM_CERTS=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m pip install --quiet --no-cache-dir "uv==${UV_VERSION}"
WORKDIR /app
COPY pyproject.toml uv.lock ./

FROM build AS build-mlflow
RUN uv sync --locked --quiet --no-cache --no-install-project --only-group mlflow-server

FROM build AS build-pipeline
RUN uv sync --locked --quiet --no-cache --no-install-project --extra serving --extra training --extra operations
COPY README.md ./
COPY health_predict health_predict
COPY components components
COPY contracts contracts
COPY pipelines pipelines
COPY bentos bentos
# Editable: the stages find the lock file and the Bento's source beside the library.
RUN uv sync --locked --quiet --no-cache --extra serving --extra training --extra operations \
 && python -m compileall -q health_predict components contracts pipelines

FROM ${PYTHON_IMAGE} AS mlflow
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="health-predict MLflow server" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build-mlflow /app/.venv /app/.venv
# MLFLOW_SERVER_ENABLE_JOB_EXECUTION: four more processes and 1.2 GiB, for jobs nobody submits here.
ENV PATH=/app/.venv/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true
USER 10001:10001
WORKDIR /tmp
EXPOSE 5000
HEALTHCHECK NONE
CMD ["mlflow", "server", "--host", "0.0.0.0", "--port", "5000", "--workers", "1"]

FROM ${PYTHON_IMAGE} AS pipeline
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="health-predict pipeline" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# LightGBM links to the OpenMP runtime.
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends libgomp1 \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build-pipeline /app /app
ENV PATH=/app/.venv/bin:$PATH HOME=/tmp HEALTH_PREDICT_HOME=/tmp/health-predict HEALTH_PREDICT_GIT_COMMIT=${REVISION} \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 BENTOML_DO_NOT_TRACK=true MLFLOW_DISABLE_TELEMETRY=true \
    RAY_USAGE_STATS_ENABLED=0 ORT_DISABLE_TELEMETRY=1
USER 10001:10001
WORKDIR /tmp
HEALTHCHECK NONE
CMD ["health-predict", "--help"]
