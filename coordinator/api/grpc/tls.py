"""TLS material as grpc takes it."""

import grpc

from coordinator.api.security.tls import TlsFiles, TlsMaterial


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials of one port, which take the newest material for every connection.

    The oldest version that grpc speaks is TLS 1.2.
    """
    last = files.current()

    def newest() -> grpc.ServerCertificateConfiguration | None:
        """Called on grpc's threads. None: nothing has changed."""
        nonlocal last
        material = files.current()
        if material is last:
            return None
        last = material
        return _configuration(material)

    needs_client = files.config.client_ca is not None
    return grpc.dynamic_ssl_server_credentials(_configuration(last), newest, needs_client)  # type: ignore[arg-type]


def _configuration(material: TlsMaterial) -> grpc.ServerCertificateConfiguration:
    pairs = [(material.key, material.cert)]
    return grpc.ssl_server_certificate_configuration(pairs, root_certificates=material.client_ca)
