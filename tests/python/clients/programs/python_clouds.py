"""Clients of AWS and Azure for Python, one of them by name: python_clouds.py CLIENT STEP...

They find their credentials by themselves. What they are told is where the services are, which here are stand-ins
(`S3`, `BLOBS`), whose certificate authority to trust (`CA`), and nothing else. `identity` is who the service says that
it was asked by, `api` what was read back from what was written.
"""

import asyncio
import os
import sys

from said import run

# Each process has an object of its own: one that is written by two at once loses its uncommitted blocks.
BUCKET, NAME, CONTENT = "data", f"object-{os.urandom(8).hex()}", "written and read"
RESOURCE = "https://storage.azure.com/.default"


class Boto3:
    kept = None

    def session(self):
        if self.kept is None:
            import boto3
            self.kept = boto3.Session()
        return self.kept

    def region(self):
        return self.session().region_name

    def identity(self):
        # STS of its region, as S3's; without a region that of the whole world.
        return self.session().client("sts").get_caller_identity()["Arn"]

    again = use = identity

    def refresh(self):
        # As an hour later.
        credentials = self.session().get_credentials()
        credentials._expiry_time = credentials._time_fetcher()
        return self.identity()

    def api(self):
        s3 = self.session().client("s3")
        s3.put_object(Bucket=BUCKET, Key=NAME, Body=CONTENT.encode())
        return s3.get_object(Bucket=BUCKET, Key=NAME)["Body"].read().decode()


class Aiobotocore:
    kept = None
    loop = asyncio.new_event_loop()

    def session(self):
        if self.kept is None:
            from aiobotocore.session import get_session
            self.kept = get_session()
        return self.kept

    def region(self):
        return self.session().get_config_variable("region")

    async def called(self):
        async with self.session().create_client("sts") as sts:
            return (await sts.get_caller_identity())["Arn"]

    def identity(self):
        return self.loop.run_until_complete(self.called())

    again = use = identity

    def refresh(self):
        credentials = self.loop.run_until_complete(self.session().get_credentials())
        credentials._expiry_time = credentials._time_fetcher()
        return self.identity()

    async def stored(self):
        async with self.session().create_client("s3") as s3:
            await s3.put_object(Bucket=BUCKET, Key=NAME, Body=CONTENT.encode())
            answer = await s3.get_object(Bucket=BUCKET, Key=NAME)
            async with answer["Body"] as body:
                return (await body.read()).decode()

    def api(self):
        return self.loop.run_until_complete(self.stored())


class Anew:
    """One that shows nothing of its credentials; a new one asks again."""

    kept = None

    def made(self):
        if self.kept is None:
            self.kept = self.make()
        return self.kept

    def again(self):
        return self.api()

    use = again

    def refresh(self):
        self.kept = None
        return self.api()


class S3fs(Anew):
    def make(self):
        import s3fs
        return s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)

    def api(self):
        self.made().pipe(f"{BUCKET}/{NAME}", CONTENT.encode())
        return self.made().cat(f"{BUCKET}/{NAME}").decode()


class Arrow(Anew):
    def read_back(self):
        with self.made().open_output_stream(f"{BUCKET}/{NAME}") as stream:
            stream.write(CONTENT.encode())
        with self.made().open_input_stream(f"{BUCKET}/{NAME}") as stream:
            return stream.read().decode()

    api = read_back


class ArrowS3(Arrow):
    def make(self):
        from pyarrow import fs
        return fs.S3FileSystem(endpoint_override=os.environ["S3"], scheme="http")

    def region(self):
        return self.made().region


class ArrowAzure(Arrow):
    def make(self):
        from pyarrow import fs
        authority, account = os.environ["BLOBS"].removeprefix("https://").split("/")
        return fs.AzureFileSystem(account, blob_storage_authority=authority, dfs_storage_authority=authority)


class Obstore(Anew):
    def api(self):
        import obstore
        obstore.put(self.made(), NAME, CONTENT.encode())
        return bytes(obstore.get(self.made(), NAME).bytes()).decode()


class ObstoreS3(Obstore):
    def make(self):
        from obstore.store import S3Store
        return S3Store(BUCKET, endpoint=f"http://{os.environ['S3']}", client_options={"allow_http": True})


class ObstoreAzure(Obstore):
    def make(self):
        from obstore.store import AzureStore
        endpoint = os.environ["BLOBS"]
        return AzureStore(BUCKET, account_name=endpoint.rpartition("/")[2], endpoint=endpoint)


class Minio(Anew):
    def make(self):
        from minio import Minio as Client
        from minio.credentials import IamAwsProvider
        provider = IamAwsProvider(custom_endpoint=os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT"))
        return Client(os.environ["S3"], secure=False, credentials=provider, region=os.environ.get("AWS_REGION"))

    def api(self):
        import io
        self.made().put_object(BUCKET, NAME, io.BytesIO(CONTENT.encode()), len(CONTENT))
        answer = self.made().get_object(BUCKET, NAME)
        try:
            return answer.read().decode()
        finally:
            answer.close()


class AzureIdentity(Anew):
    def make(self):
        from azure.identity import DefaultAzureCredential
        return DefaultAzureCredential()

    def identity(self):
        return self.made().get_token(RESOURCE).token

    again = use = identity

    def refresh(self):
        self.kept = None
        return self.identity()

    def api(self):
        from azure.storage.blob import BlobServiceClient
        with BlobServiceClient(os.environ["BLOBS"], credential=self.made()) as service:
            blob = service.get_blob_client(BUCKET, NAME)
            blob.upload_blob(CONTENT.encode(), overwrite=True)
            return blob.download_blob().readall().decode()


class Adlfs(Anew):
    def make(self):
        from adlfs import AzureBlobFileSystem
        host, _, account = os.environ["BLOBS"].removeprefix("https://").partition("/")
        return AzureBlobFileSystem(account_name=account, account_host=f"{host}/{account}", anon=False,
                                   skip_instance_cache=True, use_listings_cache=False)

    def api(self):
        self.made().pipe(f"{BUCKET}/{NAME}", CONTENT.encode(), overwrite=True)
        return self.made().cat(f"{BUCKET}/{NAME}").decode()


class GoogleAuth:
    """Where there is no Google it has to say so."""

    def identity(self):
        import google.auth
        return type(google.auth.default()[0]).__module__


KINDS = {"boto3": Boto3, "aiobotocore": Aiobotocore, "s3fs": S3fs, "pyarrow-s3": ArrowS3, "obstore-s3": ObstoreS3,
         "minio": Minio, "azure-identity": AzureIdentity, "adlfs": Adlfs, "pyarrow-azure": ArrowAzure,
         "obstore-azure": ObstoreAzure, "google-auth": GoogleAuth}

if __name__ == "__main__":
    kind = KINDS[sys.argv[1]]()
    names = ("identity", "region", "refresh", "api", "again", "use")
    run(sys.argv[2:], {name: getattr(kind, name) for name in names if hasattr(kind, name)})
