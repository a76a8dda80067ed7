"""The application note's qClient configuration file."""
# ruff: noqa: RUF001 - typographic quotes, as they stand in the note

#: "Example qClient 100 SDK configuration information", verbatim, with the typographic quotes as they stand there.
THE_NOTES_OWN = r"""
Modules={
Search_Path= ‘E:\\usr\\local\\lib’:’C:\\Windows\\System32’},
Presentation={
Protocol=KMIP, Version=’1.3’:’1.2’:’1.1’:’1.0’, Format=TTLV},
Session = {
Protocol=SSL,
Host=’kmip.mydomain.com’,
Port=’5696’,
Certificate=PEM:’E:/usr/local/etc/certs/my-cert.pem’,
CA_Cert=PEM:’E:/usr/local/etc/certs/ca-cert.pem’,
Public=PEM:’E:/usr/local/etc/certs/my-cert.pem’,
Private=PEM:’E:/usr/local/etc/certs/my-key.pem’:’password’,
Authenticate}
"""
