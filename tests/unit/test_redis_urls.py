"""How a REDIS_URL of several servers is parsed."""

from service.redis.urls import read_redis_url


def test_one_server_is_left_to_redis_py() -> None:
    for url in ("redis://:p@h/1", "rediss://h?ssl_cert_reqs=none", "unix://u:p%40@/a.sock?db=3"):
        read = read_redis_url(url)
        assert (read.kind, read.named) == ("server", (url,))


def test_sentinels_and_primary_get_the_options_and_the_primary_the_user() -> None:
    read = read_redis_url("rediss+sentinel://u:p%40%2Cq@A:1,[::1]:2/name?ssl_ca_data=word")
    assert read.named == ("rediss://a:1?ssl_ca_data=word", "rediss://[::1]:2?ssl_ca_data=word")
    assert read.to("fe80::1", 7) == "rediss://u:p%40%2Cq@[fe80::1]:7?ssl_ca_data=word"


def test_user_and_database_are_the_primarys_and_sentinels_have_a_password_of_their_own() -> None:
    read = read_redis_url("redis+sentinel://u:p@a:1,b:2/name/3?sentinel_password=s%2F&protocol=2")
    assert (read.kind, read.service) == ("sentinel", "name")
    assert read.named == ("redis://:s%2F@a:1?protocol=2", "redis://:s%2F@b:2?protocol=2")
    assert read.to("c", 4) == "redis://u:p@c:4/3?protocol=2"


def test_sentinels_without_a_password_are_asked_without_one() -> None:
    read = read_redis_url("redis+sentinel://u:p@a:1/name")
    assert read.named == ("redis://a:1",)
    assert read.to("c", 4) == "redis://u:p@c:4"
