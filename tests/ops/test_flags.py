from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr, ValidationError

from configs.schema import WindroseConfig
from ops.cli import main
from ops.flags import add_serve_flags, serve_config
from tests.ports import free_port

# Every setting once: its flag, a value that is not its default as one types it, and that value.
SETTINGS: dict[str, tuple[str, str, object]] = {
    "model": ("MODEL_DIR", "some/where", "some/where"),
    "served_model_name": ("--served-model-name", "mixtral", "mixtral"),
    "revision": ("--revision", "v0.1", "v0.1"),
    "download_dir": ("--download-dir", "/models", "/models"),
    "dtype": ("--dtype", "bfloat16", "bfloat16"),
    "quantization": ("--quantization", "int4", "int4"),
    "quantization_cache": ("--quantization-cache", "some/where", "some/where"),
    "generation_config": ("--generation-config", "none", "none"),
    "chat_template": ("--chat-template", "mistral-v1", "mistral-v1"),
    "pooling": ("--pooling", "mean", "mean"),
    "max_model_len": ("--max-model-len", "4096", 4096),
    "attention_actors": ("--attention-actors", "2", 2),
    "expert_actors": ("--expert-actors", "3", 3),
    "spare_actors": ("--spare-actors", "1", 1),
    "replicas": ("--replicas", "4", 4),
    "max_replicas": ("--max-replicas", "7", 7),
    "min_replicas": ("--min-replicas", "2", 2),
    "initial_replicas": ("--initial-replicas", "3", 3),
    "target_ongoing_requests": ("--target-ongoing-requests", "2.5", 2.5),
    "target_ttft_s": ("--target-ttft-s", "0.5", 0.5),
    "upscale_delay_s": ("--upscale-delay-s", "1.5", 1.5),
    "downscale_delay_s": ("--downscale-delay-s", "2.5", 2.5),
    "drain_timeout_s": ("--drain-timeout-s", "3.5", 3.5),
    "max_surge_percent": ("--max-surge-percent", "50", 50),
    "placement": ("--placement", "spread", "spread"),
    "attention_accelerator": ("--attention-accelerator", "A100", "A100"),
    "expert_accelerator": ("--expert-accelerator", "H100", "H100"),
    "balance": ("--balance", "auto", "auto"),
    "redundant_experts": ("--redundant-experts", "2", 2),
    "balance_window_s": ("--balance-window-s", "5.5", 5.5),
    "balance_min_gain": ("--balance-min-gain", "0.5", 0.5),
    "balance_cooldown_s": ("--balance-cooldown-s", "6.5", 6.5),
    "max_num_seqs": ("--max-num-seqs", "5", 5),
    "max_num_batched_tokens": ("--max-num-batched-tokens", "6", 6),
    "max_itl_stretch": ("--max-itl-stretch", "3.5", 3.5),
    "micro_batches": ("--micro-batches", "2", 2),
    "kv_cache_memory_bytes": ("--kv-cache-memory-bytes", "7000000", 7_000_000),
    "block_size": ("--block-size", "32", 32),
    "enable_prefix_caching": ("--enable-prefix-caching", "false", False),
    "host": ("--host", "0.0.0.0", "0.0.0.0"),
    "port": ("--port", "9000", 9000),
    "ingress_replicas": ("--ingress-replicas", "8", 8),
    "max_num_queued_reqs": ("--max-num-queued-reqs", "9", 9),
    "max_queue_time_s": ("--max-queue-time-s", "7.5", 7.5),
    "max_queued_tokens": ("--max-queued-tokens", "99", 99),
    "max_requests_per_minute": ("--max-requests-per-minute", "60", 60),
    "max_tokens_per_minute": ("--max-tokens-per-minute", "6000", 6000),
    "max_request_bytes": ("--max-request-bytes", "1000", 1000),
    "allowed_origins": ("--allowed-origins", "https://a.example", ("https://a.example",)),
    "api_key": ("--api-key", "sk-1", (SecretStr("sk-1"),)),
    "api_key_file": ("--api-key-file", "keys.txt", "keys.txt"),
    "admin_api_key": ("--admin-api-key", "sk-2", (SecretStr("sk-2"),)),
    "admin_api_key_file": ("--admin-api-key-file", "admin.txt", "admin.txt"),
    "log_format": ("--log-format", "json", "json"),
    "log_level": ("--log-level", "warning", "warning"),
    "log_prompts": ("--log-prompts", "true", True),
    "otlp_endpoint": ("--otlp-endpoint", "http://a.example:4318", "http://a.example:4318"),
    "device": ("--device", "cpu", "cpu"),
    "cpu_transport": ("--cpu-transport", "gloo", "gloo"),
    "threads_per_actor": ("--threads-per-actor", "10", 10),
    "cpus_per_actor": ("--cpus-per-actor", "0.25", 0.25),
    "shutdown_timeout_s": ("--shutdown-timeout-s", "1.5", 1.5),
    "peer_timeout_s": ("--peer-timeout-s", "2.5", 2.5),
    "request_timeout_s": ("--request-timeout-s", "30.5", 30.5),
    "body_timeout_s": ("--body-timeout-s", "4.0", 4.0),
    "pipeline_wait_s": ("--pipeline-wait-s", "3.5", 3.5),
    "start_timeout_s": ("--start-timeout-s", "4.5", 4.5),
}


def config_of(*argv: str) -> WindroseConfig:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_serve_flags(parser)
    return serve_config(parser.parse_args(argv))


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What `windrose serve` says on stderr, in one line, when it exits with 2."""
    try:
        status = main(["serve", *argv])
    except SystemExit as exit_:
        status = exit_.code  # type: ignore[assignment]
    out, err = capsys.readouterr()
    assert status == 2
    assert out == ""
    assert err.startswith("windrose serve: ")
    assert err.index("\n") == len(err) - 1
    return err


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.yaml"


def test_the_table_above_is_complete() -> None:
    defaults = {name: field.default for name, field in WindroseConfig.model_fields.items()}
    assert SETTINGS.keys() == defaults.keys()
    assert all(value != defaults[name] for name, (_, _, value) in SETTINGS.items())


# These are refused without a range of pipelines, and a range beside a number of them.
OF_A_RANGE = ("min_replicas", "initial_replicas", "target_ongoing_requests", "target_ttft_s")
TOGETHER = {name: setting for name, setting in SETTINGS.items() if name != "replicas"}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_flag_and_its_key_are_the_same_setting(name: str, file: Path) -> None:
    flag, text, value = SETTINGS[name]
    others: dict[str, object] = {} if name == "model" else {"model": "m"}
    others |= {"max_replicas": 7} if name in OF_A_RANGE else {}
    file.write_text(yaml.safe_dump(others))
    by_flag = config_of("--config", str(file), *((text,) if name == "model" else (flag, text)))
    file.write_text(yaml.safe_dump(others) * bool(others) + f"{name}: {text}\n")
    assert config_of("--config", str(file)) == by_flag
    assert by_flag == WindroseConfig.model_validate({**others, name: value})
    assert getattr(by_flag, name) == value


def test_all_at_once(file: Path) -> None:
    wanted = WindroseConfig.model_validate({k: value for k, (_, _, value) in TOGETHER.items()})
    flags = [
        word for k, (flag, text, _) in TOGETHER.items() if k != "model" for word in (flag, text)
    ]
    assert config_of(*flags, "some/where") == wanted
    several = {k: [text] for k, (_, text, value) in TOGETHER.items() if isinstance(value, tuple)}
    file.write_text(yaml.safe_dump({k: v for k, (_, _, v) in TOGETHER.items()} | several))
    assert config_of("--config", str(file)) == wanted


def test_a_time_may_be_given_without_its_unit() -> None:
    assert config_of("m", "--shutdown-timeout", "7").shutdown_timeout_s == 7.0
    assert config_of("m", "--pipeline-wait", "8").pipeline_wait_s == 8.0


def test_nothing_given_is_the_schema_s_defaults() -> None:
    assert config_of("m") == WindroseConfig(model="m")


def test_flags_win_over_the_file_and_the_file_over_defaults(file: Path) -> None:
    file.write_text("model: from-file\nport: 9000\nmax_num_seqs: 8\n")
    config = config_of("from-flag", "--port", "7000", "--config", str(file))
    assert (config.model, config.port, config.max_num_seqs, config.block_size) == (
        "from-flag",
        7000,
        8,
        16,
    )


def test_a_flag_that_says_the_default_still_wins_over_the_file(file: Path) -> None:
    file.write_text("model: m\nport: 9000\ndtype: bfloat16\n")
    config = config_of("--config", str(file), "--port", "8000", "--dtype", "auto")
    assert (config.port, config.dtype) == (8000, "auto")


def test_a_flag_replaces_a_bad_value_of_the_file(file: Path) -> None:
    file.write_text("model: m\nport: none at all\n")
    assert config_of("--config", str(file), "--port", "1").port == 1


def test_a_serve_file_works_too(file: Path) -> None:
    application = {"import_path": "cluster.app:build_app", "args": {"model": "m", "replicas": 2}}
    file.write_text(yaml.safe_dump({"http_options": {"port": 1}, "applications": [application]}))
    config = config_of("--config", str(file))
    assert config == WindroseConfig(model="m", replicas=2, port=1)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["MODEL_DIR", "--config"]),
        (["m", "--port", "0"], ["--port", "'0'", "greater than or equal to 1"]),
        (["m", "--max-num-seqs", "many"], ["--max-num-seqs", "'many'", "integer"]),
        (["m", "--cpus-per-actor", "nan"], ["--cpus-per-actor", "finite"]),
        (["m", "--peer-timeout-s", "inf"], ["--peer-timeout", "finite"]),
        (["m", "--max-itl-stretch", "0.9"], ["--max-itl-stretch", "'0.9'", "more than 1, or 0"]),
        (["m", "--dtype", "int4"], ["--dtype", "int4", "bfloat16"]),
        (["m", "--port"], ["--port", "expected one argument"]),
        (["", "--port", "1"], ["MODEL_DIR", "at least 1 character"]),
        (["m", "--max-num-seq", "3"], ["unknown: --max-num-seq 3"]),
        (["m", "n"], ["unknown: n"]),
        (["m", "--port", "x", "--replicas", "0"], ["--port 'x'", "--replicas '0'"]),
        (["--config", "no/such.yaml"], ["no/such.yaml", "No such file"]),
        (["--config", "."], ["Is a directory"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    argv: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(capsys, *argv)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: m\nmax_num_seq: 8\n", ["unknown key max_num_seq", "did you mean max_num_seqs?"]),
        ("model: m\nmax-num-seqs: 8\n", ["unknown key max-num-seqs", "mean max_num_seqs?"]),
        ("model: m\ncolour: red\n", ["unknown key colour"]),
        ("model: m\nport: yes\n", ["port", "true"]),
        ("model: m\nport: 99999\n", ["port", "99999", "65535"]),
        ("model: m\nblock_size: null\n", ["block_size", "None", "integer"]),
        ("port: 1\n", ["MODEL_DIR"]),
        ("model: [m\n", ["not YAML"]),
        ("just words\n", ["mapping"]),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_name(
    text: str, words: list[str], file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(text)
    message = refusal(capsys, "--config", str(file))
    wanted = words if "MODEL_DIR" in words else [str(file), *words]
    assert all(word in message for word in wanted), message


def test_an_unknown_key_of_a_serve_file_is_named(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text("applications: [{args: {model: m, expert_actor: 2}}]\n")
    assert "unknown key expert_actor; did you mean expert_actors?" in refusal(
        capsys, "--config", str(file)
    )


def test_help_shows_every_flag_with_its_meaning_default_and_choices(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--help"])
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    fields: dict[str, Any] = dict(WindroseConfig.model_fields)
    for name, (flag, _, _) in SETTINGS.items():
        assert flag in shown
        assert fields[name].description in shown
    for words in (
        "--dtype {auto,float32,bfloat16,float16}",
        "most sequences one attention actor runs at once (default: 64)",
        "--shutdown-timeout SECONDS",
        "model:",
        "topology:",
        "limits:",
        "HTTP:",
        "CPU and GPU:",
        "examples:",
    ):
        assert words in shown
    assert "None" not in shown


def test_a_flag_of_several_values_is_given_again(file: Path) -> None:
    keys = config_of("m", "--api-key", "a", "--api-key", "b").api_key
    assert [key.get_secret_value() for key in keys] == ["a", "b"]
    file.write_text("model: m\nallowed_origins: [https://a.example, https://b.example]\n")
    both = ("https://a.example", "https://b.example")
    assert config_of("--config", str(file)).allowed_origins == both


def test_no_refusal_shows_a_key(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("model: m\napi_key: 31415926\nadmin_api_key: [[27182818]]\n")
    message = refusal(capsys, "--config", str(file))
    assert "api_key: " in message and "admin_api_key: " in message
    with pytest.raises(ValidationError) as caught:
        WindroseConfig.model_validate({"model": "m", "api_key": 31415926})
    for text in (message, str(caught.value)):
        assert "31415926" not in text and "27182818" not in text
    assert "sk-1" not in repr(config_of("m", "--api-key", "sk-1"))


def test_keys_that_cannot_be_read_are_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = str(free_port())
    assert main(["serve", "configs/demo", "--port", port, "--api-key", "not\tone\x01"]) == 1
    err = capsys.readouterr().err
    assert "api_key: key 1" in err and "not\tone" not in err
    missing = tmp_path / "none.txt"
    assert main(["serve", "configs/demo", "--port", port, "--api-key-file", str(missing)]) == 1
    assert f"api_key_file {missing}: No such file" in capsys.readouterr().err.replace("\n", "")
