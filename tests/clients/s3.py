"""Be an S3 with one empty bucket; print the port, then the keys that signed each request."""
import http.server
import json
import re

EMPTY = (b'<?xml version="1.0"?><ListBucketResult><Name>bucket</Name>'
         b'<IsTruncated>false</IsTruncated></ListBucketResult>')


class Bucket(http.server.BaseHTTPRequestHandler):
    """Answer every request with the empty bucket."""

    def do_GET(self):
        key = re.search(r"Credential=(\w+)/", self.headers.get("Authorization", ""))
        print(json.dumps({"AccessKeyId": key and key.group(1),
                          "Token": self.headers.get("X-Amz-Security-Token")}), flush=True)
        self.send_response(200)
        self.send_header("Content-Length", str(len(EMPTY)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(EMPTY)

    do_HEAD = do_GET

    def log_message(self, *_):
        """Keep quiet: standard output is the log."""


server = http.server.HTTPServer(("127.0.0.1", 0), Bucket)
print(server.server_port, flush=True)
server.serve_forever()
