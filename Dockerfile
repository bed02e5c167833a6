# Two stages: pip and its caches stay in the first one.
FROM python:3.13-slim AS build
RUN python -m venv /opt/venv
COPY requirements.txt .
RUN /opt/venv/bin/pip install --no-cache-dir -r requirements.txt

FROM python:3.13-slim
RUN useradd --system --uid 10001 --no-create-home service \
 && install --directory --owner service --mode 0700 /run/secrets-of-service
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
COPY service service
COPY sql sql
RUN /opt/venv/bin/python -m compileall -q service
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOST=0.0.0.0
USER 10001
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s CMD \
    ["python", "-m", "service.healthcheck", "/health/ready"]
ENTRYPOINT ["python", "-m", "service"]
CMD ["serve"]
