"""Who is let into a cluster: a Ray runs whatever it is sent, so one that asks for no token is everybody's.

Asked in the way of a stranger, before this process shows its own token or sends any code. Imports no Ray.
"""

from typing import Final

from core.errors import UserError

_ASKED: Final = {
    False: "/ray.rpc.NodeInfoGcsService/GetClusterId",
    True: "/ray.rpc.RayletDriver/ClusterInfo",
}
"""A harmless question to Ray's own port, and to that of the Ray Client."""
_CLIENT: Final = "ray://"
_TIMEOUT_S: Final = 10.0


def lets_strangers_in(address: str) -> bool:
    """Whether a Ray answers who shows no token.

    Args:
        address: ``HOST:PORT`` of a head, or ``ray://HOST:PORT`` of its Ray Client.

    Raises:
        ConnectionError: If nobody answers there.
    """
    import grpc

    question = _ASKED[address.startswith(_CLIENT)]
    with grpc.insecure_channel(address.removeprefix(_CLIENT)) as channel:
        try:
            channel.unary_unary(question)(b"", timeout=_TIMEOUT_S)
        except grpc.RpcError as err:
            code = err.code()
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise ConnectionError(err.details() or code.name) from err
            return code is not grpc.StatusCode.UNAUTHENTICATED
    return True


def refuse_open_cluster(address: str) -> None:
    """Refuse a cluster that lets strangers in.

    Raises:
        UserError: If it does.
        ConnectionError: If nobody answers there.
    """
    if lets_strangers_in(address):
        raise UserError(
            f"--address {address}: whoever reaches this cluster can run code on it, because it asks for no token; "
            "start its nodes with RAY_AUTH_MODE=token and a token (`ray get-auth-token --generate`), or give "
            "--allow-insecure-cluster where nobody else can reach it"
        )
