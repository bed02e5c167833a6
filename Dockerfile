# In stages: pip, its caches, and what only developers read stay in the first. The official
# python images are built with profile-guided and link-time optimisation, a fifth faster than without.
FROM python:3.13-slim AS build
RUN apt-get update && apt-get install --yes --no-install-recommends binutils
RUN python -m venv --without-pip /opt/venv
COPY requirements.txt .
# Sources and headers of compiled modules, stubs, tests, and the assets of aiohttp-apispec's own
# Swagger UI (ours is in service/api/docs/assets) are never read.
RUN pip --python /opt/venv/bin/python install --no-cache-dir -r requirements.txt \
 && cd /opt/venv/lib/python3*/site-packages \
 && find . -type f \( -name '*.c' -o -name '*.h' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.pyi' \) -delete \
 && rm -rf aiohttp_apispec/static asyncpg/_testbase \
 && find . -name '*.so' -exec strip --strip-unneeded {} +

# What `docker compose --profile demo up` has in place of Hunter, Clearbit and a mail server.
FROM build AS stand-ins
WORKDIR /app
COPY tests/requirements.txt tests/
RUN grep -E '^(aiosmtpd|standardwebhooks)==' tests/requirements.txt > pins.txt \
 && pip --python /opt/venv/bin/python install --no-cache-dir -r pins.txt
COPY tests/stand_ins tests/stand_ins
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER nobody
ENTRYPOINT ["python", "-m", "tests.stand_ins", "--host", "0.0.0.0"]

# The base without what is for installing packages and for reading manuals: deleted files would stay in
# a layer below, so that the image begins anew with what is left.
FROM python:3.13-slim AS base
RUN useradd --system --uid 10001 --no-create-home service \
 && install --directory --owner service --mode 0700 /run/secrets-of-service \
 && install --directory --owner service --mode 0755 /run/passwords \
 && rm -rf /var/lib/apt /var/cache/* /usr/share/doc /usr/share/man /usr/share/locale \
    /root/.cache /usr/local/bin/pip* /usr/local/lib/python3*/site-packages/pip* /usr/lib/python3/dist-packages/pip* \
    /usr/local/lib/python3*/ensurepip /usr/local/lib/python3*/idlelib /usr/local/lib/python3*/test

FROM scratch
COPY --from=base / /
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
COPY service service
COPY sql sql
RUN /opt/venv/bin/python -m compileall -q service
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOST=0.0.0.0
USER 10001
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s CMD \
    ["python", "-m", "service.server.healthcheck", "/health/ready"]
ENTRYPOINT ["python", "-m", "service"]
CMD ["serve"]
