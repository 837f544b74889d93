# A small image that serves one model, not as root.
#
#   docker build -t vitrail .
#   docker run --read-only --tmpfs /tmp -p 127.0.0.1:8000:8000 -v "$PWD/runs/photos:/model:ro" \
#       -e VITRAIL_API_KEY="$(openssl rand -hex 32)" vitrail
#
# PyTorch's CPU-only builds are about a fifth of the size: --build-arg TORCH_INDEX=ADDRESS sets their package index
# (pytorch.org names the address).
FROM python:3.12-slim AS build
ARG TORCH_INDEX=
WORKDIR /src
RUN python -m venv /venv
RUN /venv/bin/pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch>=2.11" "torchvision>=0.26"
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY src src
RUN /venv/bin/pip install --no-cache-dir ".[serve,export]"
RUN find /venv -name __pycache__ -prune -exec rm -r {} + && rm -rf /venv/lib/python3.12/site-packages/torch/include

FROM python:3.12-slim
RUN useradd --system --uid 10001 --no-create-home vitrail
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OMP_WAIT_POLICY=PASSIVE \
    VITRAIL_CACHE=/tmp/vitrail MPLCONFIGDIR=/tmp/matplotlib
USER 10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=60s --interval=10s --timeout=3s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=2)"]
ENTRYPOINT ["vitrail", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["/model", "--name", "model"]
