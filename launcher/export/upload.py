"""Upload to the Hugging Face hub, if the user asks for it and is logged in."""

from __future__ import annotations

import re
from pathlib import Path

from launcher.errors import UserError
from launcher.export.quiet import quiet


def check_upload(repository: str) -> None:
    """Check an upload before anything is computed.

    Raises UserError for an invalid name, if nobody is logged in, and if the hub refuses the login or cannot be reached.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository, re.ASCII):
        raise UserError(f"--upload {repository}: must be OWNER/NAME, of letters, digits and . _ -")
    advice = "log in with: hf auth login (or set HF_TOKEN); without --upload the folder is only written"
    if not get_token():
        raise UserError(f"--upload {repository}: nobody is logged in at the hub; {advice}")
    try:
        with quiet():
            HfApi().whoami()
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise UserError(f"--upload {repository}: the hub refuses this login (HTTP {status}); {advice}") from error
    except Exception as error:  # no network, a proxy, a name that cannot be resolved
        raise UserError(f"--upload {repository}: the hub cannot be reached ({error})") from error


def upload(folder: Path, repository: str, *, private: bool) -> str:
    """Upload a folder in one commit and return the commit's URL; raise UserError if the hub refuses."""
    from huggingface_hub import HfApi

    try:
        with quiet():
            api = HfApi()
            api.create_repo(repository, private=private or None, exist_ok=True)
            if private and not api.model_info(repository).private:
                raise UserError(
                    f"--upload {repository}: is there already and public, so --private cannot be kept; give another "
                    "name, or make it private at the hub"
                )
            done = api.upload_folder(
                repo_id=repository, folder_path=folder, commit_message=f"Export of {folder.name}", run_as_future=False
            )
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"--upload {repository}: {error}; the folder is in {folder}, the same command with --overwrite tries again"
        ) from error
    return str(done.commit_url)
