"""What a vLLM server says of itself: its model, whether it is well, how busy it is."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import httpx

from chiasm.errors import GeneratorUnreachable
from chiasm.generation.providers.cluster import Facts

KEY_VARIABLE = "VLLM_API_KEY"  # vLLM's own name for it
_SECONDS = 5.0
_SIDE = 32  # pixels of the picture that is shown to it; some processors refuse smaller ones
_REQUESTS = re.compile(
    r"^vllm:num_requests_(?:running|waiting)\{[^}]*\} ([0-9.e+]+)$", re.MULTILINE
)


class VLLMProbe:
    """See `cluster.Probe`. Blocks."""

    def __init__(
        self,
        model: str | None,
        headers: Mapping[str, str],
        context: ssl.SSLContext,
        *,
        counted: bool,
    ) -> None:
        """model: None takes the first that a server names, and from then on that one.

        counted: ask how many requests a server has; of no use where there is but one.
        """
        self._model = model
        self._counted = counted
        self._client = httpx.Client(
            headers=dict(headers), verify=context, timeout=_SECONDS, trust_env=False
        )

    def facts(self, url: str) -> Facts:
        """Of the model wanted. Raises GeneratorUnreachable."""
        response = self._get(f"{url}/v1/models")
        if response.status_code in (401, 403):
            raise GeneratorUnreachable(
                f"{url} refuses the key.", hint=f"Put the right one into {KEY_VARIABLE}."
            )
        try:
            models = {str(each["id"]): each for each in response.json()["data"]}
        except (ValueError, KeyError, TypeError):
            models = {}
        if response.status_code != 200 or not models:
            raise GeneratorUnreachable(
                f"{url} answers, but names no model (status {response.status_code}).",
                hint="Is it a vLLM server, and has it loaded its model?",
            )
        self._model = self._model or next(iter(models))
        if self._model not in models:
            raise GeneratorUnreachable(
                f"{url} does not serve {self._model}, but {', '.join(models)}.",
                hint="Write the name after a # at the end of the address.",
            )
        card = models[self._model]
        context = card.get("max_model_len")
        return Facts(
            model=self._model,
            root=str(card.get("root") or ""),
            context=context if isinstance(context, int) else _UNKNOWN_CONTEXT,
            sees=self._sees(url),
        )

    def load(self, url: str) -> int | None:
        """Requests that run or wait there. Raises GeneratorUnreachable if it is not well."""
        status = self._get(f"{url}/health").status_code
        if status != 200:
            raise GeneratorUnreachable(f"{url} says that it is not well (status {status}).")
        if not self._counted:
            return None
        found = _REQUESTS.findall(self._get(f"{url}/metrics").text)
        return sum(int(float(number)) for number in found) if found else None

    def _sees(self, url: str) -> bool | None:
        """Whether the model reads pictures: it is given one to count the tokens of."""
        body = {"model": self._model, "messages": [self._question]}
        try:
            response = self._client.post(f"{url}/tokenize", json=body)
        except httpx.HTTPError:
            return None
        if response.status_code == 200:
            return True
        return False if "not a multimodal model" in response.text else None

    @cached_property
    def _question(self) -> dict[str, Any]:
        import numpy as np

        from chiasm.generation.providers.wire import one_picture
        from chiasm.media import Image

        grey = np.full((_SIDE, _SIDE, 3), 128, dtype=np.uint8)
        return one_picture(Image(grey, original_size=(_SIDE, _SIDE)), "?")

    def _get(self, url: str) -> httpx.Response:
        try:
            return self._client.get(url)
        except httpx.HTTPError:
            place = "/".join(url.split("/")[:3])
            raise GeneratorUnreachable(
                f"{place} cannot be reached.", hint="Is vLLM running there?"
            ) from None


_UNKNOWN_CONTEXT = 1 << 31  # a server that does not say refuses by itself what is too long
