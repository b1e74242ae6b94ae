# Print the credentials that the AWS SDK for Ruby finds by itself; again after each line on standard input.
require "aws-sdk-core"
require "json"

warn Aws::CORE_GEM_VERSION
$stdout.sync = true

def show(provider)
  keys = provider.credentials
  puts JSON.generate(AccessKeyId: keys.access_key_id, SecretAccessKey: keys.secret_access_key,
                     Token: keys.session_token)
end

provider = Aws::CredentialProviderChain.new.resolve or abort "no credentials"
show(provider)
$stdin.each_line { show(provider) }
