"""A client of the control plane that shares no line with Culvert: written from docs/protocol.md, its messages compiled from that page's
blocks. It subscribes to delta ADS and gets certificates, says what it saw as lines of JSON, and takes its next step from standard input
(one JSON object a line: {"do": "policy", "name": NAME} and the like; see `steps`).

usage: reference_client.py PROTOCOL.md PROTO-DIR ADDRESS:PORT SERVER-NAME ROOT.pem TOKEN
"""

import importlib
import ipaddress
import json
import queue
import re
import sys
import tempfile
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf import descriptor_pb2, struct_pb2, unknown_fields
from grpc_tools import protoc

PATIENCE = 20  # seconds, for any answer
ADDRESS = "type.googleapis.com/istio.workload.Address"
AUTHORIZATION = "type.googleapis.com/istio.security.Authorization"
WELL_KNOWN = str(Path(protoc.__file__).parent / "_proto")


def say(**what):
    print(json.dumps(what), flush=True)


def blocks(page):
    """The page's blocks of messages, by file name."""
    found = re.findall(r"^```proto\n// file: (\S+)\n(.*?)^```$", Path(page).read_text(), re.S | re.M)
    assert len(found) == 4, f"{page} has {len(found)} blocks"
    return dict(found)


def compiled(directory, names, *more):
    args = ["protoc", f"-I{directory}", f"-I{WELL_KNOWN}", *more, *names]
    assert protoc.main(args) == 0, f"protoc refuses {names}"


def fields(directory, names):
    """Every field of every message as (package.Message.field): (number, type, label), and every value of every enum."""
    out = Path(directory) / "set.pb"
    compiled(directory, names, f"--descriptor_set_out={out}")
    files = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    out.unlink()
    all = {}

    def enum(prefix, one):
        all.update({f"{prefix}.{one.name}.{value.name}": value.number for value in one.value})

    def message(prefix, one):
        name = f"{prefix}.{one.name}"
        all.update({f"{name}.{f.name}": (f.number, f.type, f.label, f.type_name) for f in one.field})
        for inner in one.nested_type:
            message(name, inner)
        for inner in one.enum_type:
            enum(name, inner)

    for file in files.file:
        for one in file.message_type:
            message(file.package, one)
        for one in file.enum_type:
            enum(file.package, one)
        for service in file.service:
            for m in service.method:
                all[f"{file.package}.{service.name}.{m.name}"] = (m.input_type, m.output_type, m.client_streaming)
    return all


def unknown(message, place):
    """Fields that the page does not name, at any depth."""
    found = [f"{place}: field {field.field_number}" for field in unknown_fields.UnknownFieldSet(message)]
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.full_name.startswith("google.protobuf."):
            continue
        name = f"{place}.{field.name}"
        if field.message_type.GetOptions().map_entry:
            inner = [v for v in value.values() if hasattr(v, "ListFields")]
        else:
            inner = value if field.is_repeated else [value]
        for one in inner:
            found += unknown(one, name)
    return found


class Client:
    def __init__(self, pb, channel, token, cluster="Kubernetes"):
        self.pb, self.channel = pb, channel
        self.metadata = [("authorization", f"Bearer {token}"), ("clusterid", cluster)]
        self.held = {ADDRESS: {}, AUTHORIZATION: {}}
        self.versions = {ADDRESS: {}, AUTHORIZATION: {}}

    def subscribe(self, versions=None):
        requests = self.requests = queue.Queue()
        stub = self.channel.stream_stream(
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
            request_serializer=self.pb.discovery.DeltaDiscoveryRequest.SerializeToString,
            response_deserializer=self.pb.discovery.DeltaDiscoveryResponse.FromString,
        )
        self.stream = stub(iter(requests.get, None), metadata=self.metadata, timeout=10 * PATIENCE)
        for kind in (AUTHORIZATION, ADDRESS):
            self.send(type_url=kind, initial_resource_versions=(versions or {}).get(kind, {}))

    def send(self, **fields):
        self.requests.put(self.pb.discovery.DeltaDiscoveryRequest(**fields))

    def close(self):
        self.requests.put(None)
        self.stream.cancel()

    def answer(self, refuse=None):
        """Takes one answer: applies and acknowledges it, or refuses it. What it was."""
        answer = next(self.stream)
        kind, of = answer.type_url, self.pb.workload.Address
        if kind == AUTHORIZATION:
            of = self.pb.security.Authorization
        strange = unknown(answer, "answer")
        for resource in answer.resources:
            assert resource.resource.type_url == kind, resource.resource.type_url
            value = of.FromString(resource.resource.value)
            strange += unknown(value, resource.name)
            self.held[kind][resource.name] = value
            self.versions[kind][resource.name] = resource.version
        for name in answer.removed_resources:
            self.held[kind].pop(name, None)
            self.versions[kind].pop(name, None)
        assert not strange, f"not on the page: {strange}"
        error = self.pb.discovery.Status(code=3, message=refuse) if refuse else None
        self.send(type_url=kind, response_nonce=answer.nonce, error_detail=error)
        short = "address" if kind == ADDRESS else "authorization"
        return {"type": short, "sent": sorted(r.name for r in answer.resources), "removed": sorted(answer.removed_resources)}

    def workload(self, name):
        for address in self.held[ADDRESS].values():
            one = address.workload
            if address.HasField("workload") and f"{one.namespace}/{one.name}" == name:
                return {
                    "uid": one.uid,
                    "node": one.node,
                    "account": one.service_account,
                    "hbone": one.tunnel_protocol == self.pb.workload.HBONE,
                    "addresses": [str(ipaddress.ip_address(ip)) for ip in one.addresses],
                    "policies": sorted(one.authorization_policies),
                    "services": {name: [[p.service_port, p.target_port] for p in ports.ports] for name, ports in one.services.items()},
                }
        return None

    def service(self, name):
        address = self.held[ADDRESS].get(name)
        if address is None:
            return None
        return {"vips": [str(ipaddress.ip_address(one.address)) for one in address.service.addresses]}

    def policy(self, name):
        one = self.held[AUTHORIZATION].get(name)
        if one is None:
            return None
        matches = [m for rule in one.rules for clause in rule.clauses for m in clause.matches]
        accounts = [f"{a.namespace}/{a.serviceAccount}" for m in matches for a in m.service_accounts]
        action = self.pb.security.Action.Name(one.action)
        return {"action": action, "rules": len(one.rules), "accounts": accounts}

    def certificate(self, identity, seconds):
        key = ec.generate_private_key(ec.SECP256R1())
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
        metadata = struct_pb2.Struct()
        if identity is not None:
            metadata["ImpersonatedIdentity"] = identity
        call = self.channel.unary_unary(
            "/istio.v1.auth.IstioCertificateService/CreateCertificate",
            request_serializer=self.pb.ca.IstioCertificateRequest.SerializeToString,
            response_deserializer=self.pb.ca.IstioCertificateResponse.FromString,
        )
        csr = request.public_bytes(serialization.Encoding.PEM).decode()
        message = self.pb.ca.IstioCertificateRequest(csr=csr, validity_duration=seconds, metadata=metadata)
        try:
            answer = call(message, metadata=self.metadata, timeout=PATIENCE)
        except grpc.RpcError as error:
            return {"refused": error.code().name, "message": error.details()}
        strange = unknown(answer, "answer")
        assert not strange, f"not on the page: {strange}"
        chain = [one for text in answer.cert_chain for one in x509.load_pem_x509_certificates(text.encode())]
        leaf, roots = chain[0], x509.load_pem_x509_certificates(answer.cert_chain[-1].encode())
        for cert, issuer in zip(chain, chain[1:]):
            cert.verify_directly_issued_by(issuer)
        chain[-1].verify_directly_issued_by(chain[-1])
        raw = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        return {
            "length": len(chain),
            "ours": leaf.public_key().public_bytes(*raw) == key.public_key().public_bytes(*raw),
            "names": [str(name.value) for name in names],
            "usages": sorted(usage.dotted_string for usage in usages),
            "seconds": int((leaf.not_valid_after_utc - leaf.not_valid_before_utc).total_seconds()),
            "root": roots[0].fingerprint(hashes.SHA256()).hex(),
        }


def steps(client, root):
    """What the other side of standard input may ask for; each is answered by one line."""
    for line in sys.stdin:
        step = json.loads(line)
        what, name = step["do"], step.get("name")
        if what == "subscribe":
            client.subscribe(client.versions if step.get("held") else None)
            say(subscribed=True)
        elif what == "close":
            client.close()
            say(closed=True)
        elif what == "answer":
            say(**client.answer(step.get("refuse")))
        elif what in ("workload", "service", "policy"):
            say(found=getattr(client, what)(name))
        elif what == "certificate":
            say(**client.certificate(name, step.get("seconds", 0)))
        elif what == "root":
            say(root=root.fingerprint(hashes.SHA256()).hex())
        else:
            raise ValueError(what)


class Messages:
    """The compiled modules of the page's blocks."""

    def __init__(self, directory, names):
        compiled(directory, names, f"--python_out={directory}")
        sys.path.insert(0, str(directory))
        for name in names:
            stem = name.removesuffix(".proto")
            setattr(self, stem, importlib.import_module(f"{stem}_pb2"))


def main(page, proto, address, server, root, token):
    with tempfile.TemporaryDirectory(prefix="culvert-reference-") as directory:
        texts = blocks(page)
        for name, text in texts.items():
            (Path(directory) / name).write_text(text)
        ours, theirs = fields(directory, texts), fields(directory, texts)
        with tempfile.TemporaryDirectory(prefix="culvert-reference-") as copy:
            for name in texts:
                (Path(copy) / name).write_text((Path(proto) / name).read_text())
            theirs = fields(copy, texts)
        drift = {name: (value, theirs.get(name)) for name, value in ours.items() if theirs.get(name) != value}
        assert not drift, f"the page says otherwise than mesh-api/proto: {drift}"
        pb = Messages(directory, texts)
        pem = Path(root).read_bytes()
        options = [("grpc.ssl_target_name_override", server), ("grpc.max_receive_message_length", -1)]
        with grpc.secure_channel(address, grpc.ssl_channel_credentials(pem), options) as channel:
            grpc.channel_ready_future(channel).result(timeout=PATIENCE)
            say(connected=address, fields=len(ours))
            steps(Client(pb, channel, token), x509.load_pem_x509_certificate(pem))


if __name__ == "__main__":
    main(*sys.argv[1:])
