"""Logs in with the PyPI package `XenAPI` and lists the VMs, one name per line.

usage: python xenapi.py URL USER PASSWORD
"""

import sys

import XenAPI


def main():
    url, user, password = sys.argv[1:4]
    session = XenAPI.Session(url, ignore_ssl=True)
    session.xenapi.login_with_password(user, password, "2.0", "xapi-sim foreign test")
    try:
        pool = session.xenapi.pool.get_all()[0]
        host = session.xenapi.pool.get_master(pool)
        major = int(session.xenapi.host.get_API_version_major(host))
        minor = int(session.xenapi.host.get_API_version_minor(host))
        print(f"api {major}.{minor}", file=sys.stderr)
        # Integers arrive as strings, booleans as booleans, dates as DateTime: the types this client's users rely on.
        for record in session.xenapi.VM.get_all_records().values():
            assert isinstance(record["is_a_template"], bool), record
            assert isinstance(record["memory_static_max"], str), record
            print(record["name_label"])
        # `from` is a keyword of the language, not of the API.
        events = getattr(session.xenapi.event, "from")(["vm"], "", 1.0)
        assert isinstance(events["valid_ref_counts"]["vm"], int), events["valid_ref_counts"]
        try:
            session.xenapi.VM.get_record("OpaqueRef:nothing")
        except XenAPI.Failure as failure:
            assert failure.details == ["HANDLE_INVALID", "VM", "OpaqueRef:nothing"], failure.details
        else:
            raise AssertionError("an unknown reference was accepted")
    finally:
        session.xenapi.session.logout()


main()
