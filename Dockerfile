# onnx-obc with the CPU runtimes at fixed versions.
#   docker build -t onnx-obc . && docker run --rm -v "$PWD:/work" onnx-obc model.onnx small.onnx --calib data.npz
FROM python:3.11-slim AS wheel
WORKDIR /source
RUN pip install --no-cache-dir hatchling==1.27.0
COPY pyproject.toml README.md LICENSE ./
COPY onnx_obc onnx_obc
COPY models models
RUN python -m hatchling build -t wheel -d /dist

FROM python:3.11-slim
COPY --from=wheel /dist/*.whl /tmp/
RUN pip install --no-cache-dir /tmp/*.whl onnxruntime==1.32.0 openvino==2026.4.1 && rm /tmp/*.whl
RUN useradd --create-home user
USER user
ENV NUMBA_CACHE_DIR=/home/user/.numba
WORKDIR /work
ENTRYPOINT ["onnx-obc"]
