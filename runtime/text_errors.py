"""What can go wrong between text and ids: leaves of the tree in `errors.py`.

    ModelLoadError
      TokenizerInvalid       tokenizer.json (or tokenizer_config.json) is missing, broken or of a kind not served
      TemplateInvalid        the checkpoint's chat template is missing or does not compile
    RequestInvalid
      MessagesInvalid        messages, tools or template_kwargs are not what the API says
      ContentNotSupported    a content part that is not text
      TemplateFailed         the template refused this conversation, or could not finish it within its bounds
      TokenIdInvalid         a prompt id that the tokenizer does not know

The request errors carry `param`, the path of the field.
"""

from __future__ import annotations

from .errors import ModelLoadError, RequestInvalid


class TokenizerInvalid(ModelLoadError):
    """`file` names the file that is missing or wrong."""

    code = "tokenizer_invalid"


class TemplateInvalid(ModelLoadError):
    """No template, or one that is not Jinja."""

    code = "template_invalid"


class MessagesInvalid(RequestInvalid):
    """Not JSON, not a list of messages, or a part of one has the wrong shape."""

    code = "invalid_request"


class ContentNotSupported(RequestInvalid):
    """An image, video, sound or file where only text is understood."""

    code = "unsupported_content"


class TemplateFailed(RequestInvalid):
    """The template raised, or its text or its time went over the limit."""

    code = "template_error"

    def __init__(self, message: str, param: str = "messages") -> None:
        super().__init__(message, param)


class TokenIdInvalid(RequestInvalid):
    """Negative, or not below the number of ids that the tokenizer knows."""

    code = "invalid_token_id"
