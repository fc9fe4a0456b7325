"""The rights of an account: every verb of the controller's list, asked of the API server.

It exists so that a role that lacks something is named before the controller fails at it. The list itself is
`controller.operator.permissions`, which the chart's roles are tested against.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from controller.operator.api import Api, ApiError, Object
from controller.operator.doctor.api_server import OPTIONAL_KINDS, serves
from controller.operator.doctor.findings import Mark, Notes
from controller.operator.permissions import Permission, Question, questions

ASKERS = 8
SELF_REVIEW = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
REVIEW = "/apis/authorization.k8s.io/v1/subjectaccessreviews"

Account = tuple[str, str]
"""Namespace and name of a ServiceAccount."""


def examine_rights(
    api: Api, notes: Notes, *, namespace: str, watched: Sequence[str], account: Account | None
) -> None:
    """Ask the API server about every verb of the list.

    Parameters
    ----------
    namespace
        Of the release; empty if it is not known.
    watched
        Namespaces that the controller watches; none: all.
    account
        Whose rights are asked for; None: our own.
    """
    who = f"ServiceAccount {account[0]}/{account[1]}" if account else "your account"
    own = namespace or (account[0] if account else "") or "default"
    absent = {
        (resource.api_version.rpartition("/")[0], resource.plural)
        for resource, _ in OPTIONAL_KINDS
        if not serves(api, resource.api_version, resource.plural)
    }
    asked = [
        question
        for question in questions(own, watched)
        if (question.permission.group, question.permission.resource) not in absent
    ]
    try:
        with ThreadPoolExecutor(ASKERS) as pool:
            answers = [*pool.map(lambda question: _may(api, account, question), asked)]
    except ApiError as error:
        notes.unseen("permissions", f"the rights of {who}", error)
        return
    refused: dict[tuple[Permission, str], list[str]] = {}
    for question, allowed in zip(asked, answers, strict=True):
        if not allowed:
            refused.setdefault((question.permission, question.namespace), []).append(question.verb)
    if not any(answers):
        notes.note(
            "permissions",
            Mark.MISSING,
            f"{who} has none of the {len(asked)} rights the controller needs",
            "install the chart with rbac.create=true, or name the account that it uses",
        )
        refused = {}
    for (permission, where_asked), verbs in refused.items():
        where = f" in {where_asked}" if where_asked else ""
        resource = f"{permission.resource}/{permission.subresource}".removesuffix("/")
        rule = f'apiGroups: ["{permission.group}"], resources: [{resource}], verbs: [{", ".join(verbs)}]'
        notes.note(
            "permissions",
            Mark.WARNING if permission.optional else Mark.MISSING,
            f"{who} may not {', '.join(verbs)} {permission.written}{where} (to {permission.why})",
            f"let its role allow {rule}",
        )
    if all(answers):
        notes.note("permissions", Mark.OK, f"{who} has all {len(asked)} rights the controller needs")
    if account is None:
        notes.note(
            "permissions",
            Mark.OK,
            "these were your own rights",
            f"for the controller's: --as-service-account {namespace or 'NAMESPACE'}/ballast-controller",
        )


def _may(api: Api, account: Account | None, question: Question) -> bool:
    spec: Object = {"resourceAttributes": question.attributes()}
    if account is not None:
        spec["user"] = f"system:serviceaccount:{account[0]}:{account[1]}"
        spec["groups"] = [
            "system:serviceaccounts",
            f"system:serviceaccounts:{account[0]}",
            "system:authenticated",
        ]
    kind = "SelfSubjectAccessReview" if account is None else "SubjectAccessReview"
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec}
    answer = api.request("POST", SELF_REVIEW if account is None else REVIEW, body=body)
    return bool((answer.get("status") or {}).get("allowed"))
