"""The subcommand that measures our server and others: compare."""

from __future__ import annotations

import argparse
import json
import secrets
import shlex
from typing import Any

from ops.bench.arguments import Benches, add_workload, bench_parser, named, words_of
from ops.bench.report import Report
from ops.bench.workload import Traffic


def add(benches: Benches) -> None:
    """Declare it."""
    parser = bench_parser(benches, "compare", "our server and others on this machine, taking turns")
    parser.set_defaults(run=_run)
    parser.add_argument("model_dir", metavar="MODEL", help="a Hugging Face checkpoint")
    parser.add_argument(
        "--peer",
        type=named,
        action="append",
        required=True,
        metavar="NAME=CMD",
        help="a server to hold ours against, with OpenAI's /v1/completions; {port} and {model} in "
        "its command are filled in; may be given again",
    )
    parser.add_argument(
        "--peer-fields",
        type=named,
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="what that peer is sent beside OpenAI's fields, in place of "
        '{"ignore_eos": true, "return_token_ids": true}',
    )
    parser.add_argument(
        "--own-args", default="", metavar="FLAGS", help="more flags of `windrose serve`, quoted"
    )
    add_workload(parser, streams="1,8,32")
    parser.add_argument(
        "--prefill-tokens",
        type=int,
        default=1024,
        metavar="N",
        help="of one prompt by itself, for one token; 0: none (default: %(default)s)",
    )
    parser.add_argument(
        "--restart",
        action="store_true",
        help="one server at a time, started anew in each round; otherwise all stay up, idle "
        "while another is measured",
    )
    parser.add_argument(
        "--prompt-text",
        action="store_true",
        help="send short words instead of token ids, where a peer takes no ids",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of the prompts; default: a new one")


def _run(args: argparse.Namespace) -> Report:
    from model.config import ModelConfig
    from ops.bench.compare import CompareBench, bench_compare
    from ops.bench.contenders import OWN_NAME, Contender
    from ops.server_process import windrose_serve

    own = windrose_serve(args.model_dir, shlex.split(args.own_args), "{port}")
    fields = {name: _json_object(name, text) for name, text in args.peer_fields}
    for name in fields:
        if name not in dict(args.peer):
            raise ValueError(f"--peer-fields {name}: there is no such --peer")
    peers = []
    for name, text in args.peer:
        command = words_of(text, args.model_dir)
        peers.append(
            Contender(name, command, fields[name]) if name in fields else Contender(name, command)
        )
    if args.prefill_tokens < 0:
        raise ValueError(f"--prefill-tokens {args.prefill_tokens}: not below 0")
    vocab_size = ModelConfig.from_dir(args.model_dir).vocab_size
    seed = secrets.randbits(32) if args.seed is None else args.seed
    return bench_compare(
        CompareBench(
            model=args.model_dir,
            contenders=(Contender(OWN_NAME, tuple(own)), *peers),
            streams=args.streams,
            traffic=Traffic(args.prompt_tokens, args.output_tokens, vocab_size, seed),
            prefill_tokens=args.prefill_tokens,
            rounds=args.rounds,
            restart=args.restart,
            prompt_text=args.prompt_text,
        )
    )


def _json_object(name: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"--peer-fields {name}: no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"--peer-fields {name}: {text} is no JSON object")
    return value
