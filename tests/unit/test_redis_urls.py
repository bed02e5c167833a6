"""What a REDIS_URL of several servers is taken apart into."""

from service.redis_urls import read_redis_url


def test_one_server_is_left_to_redis_py() -> None:
    for url in ("redis://:p@h/1", "rediss://h?ssl_cert_reqs=none", "unix://u:p%40@/a.sock?db=3"):
        read = read_redis_url(url)
        assert (read.kind, read.named) == ("server", (url,))


def test_all_nodes_of_a_cluster_get_the_user_and_the_options() -> None:
    read = read_redis_url("rediss+cluster://u:p%40%2Cq@A:1,[::1]:2?ssl_ca_certs=/ca.pem")
    assert read.kind == "cluster"
    assert read.named == (
        "rediss://u:p%40%2Cq@a:1?ssl_ca_certs=/ca.pem",
        "rediss://u:p%40%2Cq@[::1]:2?ssl_ca_certs=/ca.pem",
    )
    assert read.to("fe80::1", 7) == "rediss://u:p%40%2Cq@[fe80::1]:7?ssl_ca_certs=/ca.pem"
